//! Writes a rule set's literals, one a line: c|i and hex.
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let sources = engine_yara::load_sources(&[a[1].clone().into()]).unwrap();
    let list: Vec<_> = sources.iter().map(|(n, t)| readplan::Source { namespace: n, text: t }).collect();
    let plan = readplan::Plan::compile(&list).unwrap();
    let f = plan.filter();
    for id in 0..f.len() as u32 {
        let (b, i) = f.literal(id).unwrap();
        println!("{}{}", if i { 'i' } else { 'c' }, b.iter().map(|b| format!("{b:02x}")).collect::<String>());
    }
}
