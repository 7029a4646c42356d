//! From rule files to a plan.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use literal_filter::{Filter, Needles};
use rustc_hash::FxHashMap;
use yara_x_parser::Parser;
use yara_x_parser::ast::dfs::{DFSEvent, DFSIter};
use yara_x_parser::ast::{AST, Expr as Ast, Rule, RuleFlags};
use yara_x_parser::cst::{Event, SyntaxKind};

use crate::class::Class;
use crate::expr::{Converter, Expr};
use crate::expressions::Expressions;
use crate::filters::Classes;
use crate::hidden::Hidden;
use crate::look::{Look, Side};
use crate::pattern::{self, PatternInfo};
use crate::probe::Probe;

/// A rule of a plan, by its position: files in the order given, rules as they stand there.
pub type RuleId = usize;

/// A rule file.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The namespace of its rules; no other file has the same.
    pub namespace: &'a str,
    /// Its text.
    pub text: &'a [u8],
}

/// A rule as the plan sees it.
#[derive(Debug)]
pub(crate) struct RuleEntry {
    pub(crate) name: String,
    pub(crate) file: usize,
    pub(crate) condition: Expr,
    /// What its condition has besides.
    pub(crate) hidden: Hidden,
    pub(crate) first_pattern: usize,
    /// In its condition, by index into the plan's probes.
    probes: Vec<usize>,
    /// Modules that its condition names.
    imports: Vec<String>,
    /// Its text within the file.
    span: Range<usize>,
}

#[derive(Debug)]
struct FileEntry {
    namespace: String,
    text: Vec<u8>,
    imports: Vec<String>,
    has_globals: bool,
}

#[derive(Debug)]
pub(crate) struct PatternEntry {
    pub(crate) info: PatternInfo,
    pub(crate) rule: RuleId,
}

/// A rule set, compiled into what of a file can still change its verdict.
#[derive(Debug)]
pub struct Plan {
    rules: Vec<RuleEntry>,
    files: Vec<FileEntry>,
    by_name: HashMap<(usize, String), RuleId>,
    patterns: Vec<PatternEntry>,
    /// What the appliance looks for, and what an agent does.
    looks: [Look; 2],
    /// What the appliance looks for in files of each class.
    classes: Classes,
    /// For each rule, the rules that refer to it.
    dependants: Vec<Vec<RuleId>>,
    probes: Vec<Probe>,
    /// Rules that have to be compiled together.
    groups: Vec<Vec<RuleId>>,
    /// Of verifiers.
    expressions: Expressions,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The file is not what YARA-X accepts.
    #[error("{namespace}: {message}")]
    Syntax {
        /// Of the file.
        namespace: String,
        /// What and where.
        message: String,
    },
    /// The literals make no filter.
    #[error("filter: {0}")]
    Filter(#[from] literal_filter::FilterError),
}

impl Plan {
    /// Compiles rule files. They must be such as YARA-X accepts.
    ///
    /// # Errors
    /// A file with mistakes.
    pub fn compile(sources: &[Source<'_>]) -> Result<Self, PlanError> {
        let mut building = Building::default();
        for source in sources {
            building.add(source)?;
        }
        building.finish()
    }

    /// The filter over the literals that are looked for where content is at hand.
    pub fn filter(&self) -> &Arc<Filter> {
        self.look(Side::Appliance).filter()
    }

    /// What an agent looks for: literals, and needles, whose ids follow those of the literals.
    pub fn agent_filter(&self) -> (&Arc<Filter>, &Arc<Needles>) {
        let look = self.look(Side::Agent);
        (look.filter(), look.needles())
    }

    pub(crate) fn look(&self, side: Side) -> &Look {
        let [appliance, agent] = &self.looks;
        match side {
            Side::Appliance => appliance,
            Side::Agent => agent,
        }
    }

    pub(crate) fn classes(&self) -> &Classes {
        &self.classes
    }

    pub(crate) fn patterns(&self) -> &[PatternEntry] {
        &self.patterns
    }

    pub(crate) fn expressions(&self) -> &Expressions {
        &self.expressions
    }

    /// How many rules there are.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// There is no rule.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Namespace and name of a rule.
    pub fn name(&self, rule: RuleId) -> (&str, &str) {
        let entry = self.rule(rule);
        (self.file(entry).namespace.as_str(), entry.name.as_str())
    }

    /// The rule's text, from its first keyword to its last brace.
    pub fn text(&self, rule: RuleId) -> &[u8] {
        let entry = self.rule(rule);
        let text = &self.file(entry).text;
        text.get(entry.span.clone()).unwrap_or_default()
    }

    /// For each pattern of a rule bytes that match it, or nearly so: for making test files.
    pub fn samples(&self, rule: RuleId) -> Vec<&[u8]> {
        let first = self.rule(rule).first_pattern;
        let own = self
            .patterns
            .iter()
            .skip(first)
            .take_while(|p| p.rule == rule);
        own.map(|pattern| pattern.info.sample.as_slice()).collect()
    }

    /// The rule of this namespace and name.
    pub fn rule_named(&self, namespace: &str, name: &str) -> Option<RuleId> {
        let file = self
            .files
            .iter()
            .position(|file| file.namespace == namespace)?;
        self.by_name.get(&(file, name.to_owned())).copied()
    }

    /// Rules that no literal guards.
    pub fn residents(&self) -> &[RuleId] {
        self.look(Side::Appliance).residents()
    }

    /// Conditions that YARA-X can decide without looking for patterns, by index.
    pub fn probes(&self) -> &[Probe] {
        &self.probes
    }

    /// The probes that a rule's condition has.
    pub fn probes_of(&self, rule: RuleId) -> &[usize] {
        &self.rule(rule).probes
    }

    /// The rule may match a small file in which no literal occurs, of whatever kind.
    pub fn is_always_open(&self, rule: RuleId) -> bool {
        let mut smallest = Class::all().filter(|class| class.sizes().0 == 0);
        smallest.all(|class| self.classes.is_resident(class, rule))
    }

    /// Modules that a rule's condition names.
    pub fn imports_of(&self, rule: RuleId) -> &[String] {
        &self.rule(rule).imports
    }

    fn names(&self, rule: RuleId, module: &str) -> bool {
        self.imports_of(rule).iter().any(|name| name == module)
    }

    /// Sets of rules that refer to each other, or are bound by global rules: each is compiled as
    /// a whole or not at all.
    pub fn groups(&self) -> &[Vec<RuleId>] {
        &self.groups
    }

    /// All modules that rules import.
    pub fn imports(&self) -> BTreeSet<&str> {
        let files = self.files.iter();
        files
            .flat_map(|file| file.imports.iter().map(String::as_str))
            .collect()
    }

    /// The rule files that have just these rules, which must be whole groups.
    pub fn sources_of(&self, rules: &[RuleId]) -> Vec<(String, Vec<u8>)> {
        let mut by_file: Vec<Vec<RuleId>> = vec![Vec::new(); self.files.len()];
        for rule in rules {
            if let Some(list) = by_file.get_mut(self.rule(*rule).file) {
                list.push(*rule);
            }
        }
        let mut sources = Vec::new();
        for (file, mut rules) in self.files.iter().zip(by_file) {
            if rules.is_empty() {
                continue;
            }
            rules.sort_unstable();
            let mut text = Vec::new();
            // A module that no rule here names would be run for nothing.
            let named = |import: &&String| rules.iter().any(|rule| self.names(*rule, import));
            for import in file.imports.iter().filter(named) {
                text.extend_from_slice(format!("import \"{import}\"\n").as_bytes());
            }
            for rule in rules {
                let span = self.rule(rule).span.clone();
                text.extend_from_slice(file.text.get(span).unwrap_or_default());
                text.push(b'\n');
            }
            sources.push((file.namespace.clone(), text));
        }
        sources
    }

    pub(crate) fn rule(&self, rule: RuleId) -> &RuleEntry {
        &self.rules[rule]
    }

    /// Indices of a rule's patterns.
    pub(crate) fn patterns_of(&self, rule: RuleId) -> Range<usize> {
        let end = self.rules.get(rule + 1).map(|next| next.first_pattern);
        self.rule(rule).first_pattern..end.unwrap_or(self.patterns.len())
    }

    fn file(&self, rule: &RuleEntry) -> &FileEntry {
        &self.files[rule.file]
    }

    pub(crate) fn find(&self, from: RuleId, name: &str) -> Option<RuleId> {
        let key = (self.rule(from).file, name.to_owned());
        self.by_name.get(&key).copied().filter(|rule| *rule != from)
    }

    /// Rules that refer to a rule.
    pub(crate) fn dependants(&self, rule: RuleId) -> &[RuleId] {
        &self.dependants[rule]
    }

    pub(crate) fn has_globals(&self, rule: RuleId) -> bool {
        self.file(self.rule(rule)).has_globals
    }

    pub(crate) fn fixed(&self, pattern: usize) -> Option<&[u8]> {
        self.patterns.get(pattern)?.info.fixed.as_deref()
    }
}

#[derive(Default)]
struct Building {
    rules: Vec<RuleEntry>,
    files: Vec<FileEntry>,
    by_name: HashMap<(usize, String), RuleId>,
    patterns: Vec<PatternEntry>,
    probes: Vec<Probe>,
    probe_ids: FxHashMap<Probe, usize>,
    /// Rules named in conditions.
    references: Vec<(RuleId, RuleId)>,
    globals: Vec<RuleId>,
}

impl Building {
    fn add(&mut self, source: &Source<'_>) -> Result<(), PlanError> {
        let ast = AST::from(source.text);
        let failed = |message: String| PlanError::Syntax {
            namespace: source.namespace.to_owned(),
            message,
        };
        if let Some(error) = ast.errors().first() {
            return Err(failed(format!("{error:?}")));
        }
        let spans = rule_spans(source.text);
        if spans.len() != ast.rules().count() {
            return Err(failed("rules cannot be told apart".to_owned()));
        }
        let imports: Vec<&str> = ast.imports().map(|i| i.module_name).collect();
        let file = self.files.len();
        self.files.push(FileEntry {
            namespace: source.namespace.to_owned(),
            text: source.text.to_vec(),
            imports: imports.iter().map(|name| (*name).to_owned()).collect(),
            has_globals: ast
                .rules()
                .any(|rule| rule.flags.contains(RuleFlags::Global)),
        });
        for (rule, span) in ast.rules().zip(spans) {
            self.add_rule(rule, span, file, source.text, &imports);
        }
        Ok(())
    }

    fn add_rule(
        &mut self,
        rule: &Rule<'_>,
        span: Range<usize>,
        file: usize,
        text: &[u8],
        imports: &[&str],
    ) {
        let id = self.rules.len();
        let first_pattern = self.patterns.len();
        let patterns = rule.patterns.as_deref().unwrap_or_default();
        let infos: Vec<_> = patterns.iter().map(pattern::analyse).collect();
        let slow = infos.iter().map(|info| info.verifier.is_some()).collect();
        let entries = infos
            .into_iter()
            .map(|info| PatternEntry { info, rule: id });
        self.patterns.extend(entries);
        self.note_references(&rule.condition, id, file);
        let by_name = &self.by_name;
        let (probes, probe_ids) = (&mut self.probes, &mut self.probe_ids);
        let entries = &mut self.patterns;
        let names = patterns
            .iter()
            .map(|p| p.identifier().name.trim_start_matches('$'));
        let mut used = Vec::new();
        let mut converter = Converter {
            source: text,
            patterns: names.collect(),
            slow,
            imports: imports.to_vec(),
            rules: &|name| by_name.contains_key(&(file, name.to_owned())),
            probes: &mut |probe| {
                let id = *probe_ids.entry(probe).or_insert_with_key(|probe| {
                    probes.push(probe.clone());
                    probes.len() - 1
                });
                used.push(id);
                id
            },
            literals: &mut |info| {
                entries.push(PatternEntry { info, rule: id });
                entries.len() - 1 - first_pattern
            },
            variables: Vec::new(),
            hidden: Hidden::default(),
            depth: 0,
        };
        let condition = converter.condition(&rule.condition);
        let hidden = converter.hidden;
        self.rules.push(RuleEntry {
            name: rule.identifier.name.to_owned(),
            file,
            condition,
            hidden,
            first_pattern,
            probes: used,
            imports: named_imports(&rule.condition, imports),
            span,
        });
        if rule.flags.contains(RuleFlags::Global) {
            self.globals.push(id);
        }
        self.by_name
            .insert((file, rule.identifier.name.to_owned()), id);
    }

    /// Names of rules, also such as mean a variable or a field: that costs nothing but grouping.
    fn note_references(&mut self, condition: &Ast<'_>, rule: RuleId, file: usize) {
        for event in DFSIter::new(condition) {
            if let DFSEvent::Enter(Ast::Ident(ident)) = event
                && let Some(other) = self.by_name.get(&(file, ident.name.to_owned()))
            {
                self.references.push((rule, *other));
            }
        }
    }

    fn finish(self) -> Result<Plan, PlanError> {
        let mut dependants = vec![Vec::new(); self.rules.len()];
        for (rule, other) in &self.references {
            dependants[*other].push(*rule);
        }
        let groups = self.groups();
        let mut plan = Plan {
            rules: self.rules,
            files: self.files,
            by_name: self.by_name,
            patterns: self.patterns,
            looks: Default::default(),
            classes: Classes::default(),
            dependants,
            probes: self.probes,
            groups,
            expressions: Expressions::default(),
        };
        plan.looks = [Look::of_appliance(&plan)?, Look::of_agent(&plan)?];
        plan.classes = Classes::of(&plan)?;
        Ok(plan)
    }

    /// Rules tied by references, or by a global rule of their file.
    fn groups(&self) -> Vec<Vec<RuleId>> {
        let mut parent: Vec<RuleId> = (0..self.rules.len()).collect();
        fn root(parent: &mut [RuleId], mut at: RuleId) -> RuleId {
            while parent[at] != at {
                parent[at] = parent[parent[at]];
                at = parent[at];
            }
            at
        }
        let mut tie = |a: RuleId, b: RuleId| {
            let (a, b) = (root(&mut parent, a), root(&mut parent, b));
            parent[a.max(b)] = a.min(b);
        };
        for (rule, other) in &self.references {
            tie(*rule, *other);
        }
        for global in &self.globals {
            let file = self.rules[*global].file;
            for (id, _) in self
                .rules
                .iter()
                .enumerate()
                .filter(|(_, r)| r.file == file)
            {
                tie(*global, id);
            }
        }
        let mut groups: Vec<Vec<RuleId>> = vec![Vec::new(); self.rules.len()];
        for rule in 0..self.rules.len() {
            let root = root(&mut parent, rule);
            groups[root].push(rule);
        }
        groups.retain(|group| !group.is_empty());
        groups
    }
}

/// The modules among `imports` that a condition names; a variable called like one counts, too.
fn named_imports(condition: &Ast<'_>, imports: &[&str]) -> Vec<String> {
    let mut named: Vec<String> = Vec::new();
    for event in DFSIter::new(condition) {
        if let DFSEvent::Enter(Ast::Ident(ident)) = event
            && imports.contains(&ident.name)
            && !named.iter().any(|name| name == ident.name)
        {
            named.push(ident.name.to_owned());
        }
    }
    named
}

/// Where each rule stands in the text, in order.
fn rule_spans(text: &[u8]) -> Vec<Range<usize>> {
    let spans = Parser::new(text).filter_map(|event| match event {
        Event::Begin {
            kind: SyntaxKind::RULE_DECL,
            span,
        } => Some(span.range()),
        _ => None,
    });
    spans.collect()
}
