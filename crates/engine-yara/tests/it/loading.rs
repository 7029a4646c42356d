//! Rules that load, and rules that do not.

use engine::host::{Engine, StartError};

use crate::{folder, names, scan, spec, start};

#[tokio::test]
async fn mistakes_are_told_with_file_and_line() {
    let rules = folder("rule a { condition: true }\nrule b {\n  condition: foo }\n");
    std::fs::write(rules.path().join("second.yar"), "rule c {").expect("written");
    std::fs::write(rules.path().join("third.yar"), b"rule \xff {").expect("written");
    let include = "include \"rules.yar\"\nrule d { condition: true }";
    std::fs::write(rules.path().join("z.yar"), include).expect("written");
    let Err(StartError::Failed { errors, .. }) = Engine::start(spec(rules.path())).await else {
        panic!("rules with mistakes were taken");
    };
    let folder = rules.path().display();
    assert_eq!(errors.len(), 4, "{errors:#?}");
    assert!(errors[0].starts_with(&format!("{folder}/rules.yar:3: unknown identifier")));
    assert!(errors[1].starts_with(&format!("{folder}/second.yar:1: syntax error")));
    assert!(errors[2].starts_with(&format!("{folder}/third.yar:1: invalid UTF-8")));
    assert!(
        errors[3].starts_with(&format!("{folder}/z.yar:1: ")),
        "{}",
        errors[3]
    );
}

#[tokio::test]
async fn paths_that_lead_nowhere_are_told() {
    let empty = tempfile::tempdir().expect("a folder");
    let error = Engine::start(spec(empty.path()))
        .await
        .err()
        .expect("refused");
    assert!(error.to_string().contains("there is no rule"), "{error}");
    let missing = empty.path().join("missing");
    let error = Engine::start(spec(&missing)).await.err().expect("refused");
    assert!(
        error.to_string().contains("missing: No such file"),
        "{error}"
    );
}

#[tokio::test]
async fn the_generation_is_that_of_the_rules() {
    let source = "rule a { condition: filesize == 1 }";
    let (one, same) = (folder(source), folder(source));
    let other = folder("rule a { condition: filesize == 2 }");
    let generation = async |rules: &tempfile::TempDir| {
        let engine = start(rules.path()).await;
        engine.info().generation.clone()
    };
    let first = generation(&one).await;
    assert_eq!(first.len(), 16);
    assert_eq!(first, generation(&same).await);
    assert_ne!(first, generation(&other).await);
}

#[tokio::test]
async fn a_reload_takes_new_rules_and_refuses_bad_ones() {
    let rules = folder("rule one { condition: filesize == 1 }");
    let engine = start(rules.path()).await;
    assert!(!engine.info().context_sensitive);
    let file = rules.path().join("rules.yar");
    std::fs::write(&file, "rule two { condition: filesize == 1 }").expect("written");
    engine.reload(None).await.expect("reloads");
    assert_eq!(names(&scan(&engine, b"x").await), ["two"]);
    std::fs::write(&file, "rule three {").expect("written");
    let error = engine.reload(None).await.expect_err("refused");
    assert!(error.to_string().contains("rules.yar:1"), "{error}");
    assert_eq!(names(&scan(&engine, b"x").await), ["two"]);
}
