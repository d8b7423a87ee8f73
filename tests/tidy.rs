//! Rules of the house as a test: what a reviewer would otherwise have to say again and again.

use regex::Regex;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use streamshield_tests::support::figures::root;

/// Files beyond this many lines hold a second idea; they are listed, and beyond twice as many refused.
const LINES_WANTED_MAX: usize = 500;
const LINES_MAX: usize = 1_000;

/// Paths that git would commit, with their text (binary files are left out).
fn files() -> Vec<(PathBuf, String)> {
    let output = std::process::Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git lists the files of the project");
    assert!(output.status.success(), "the project is a git repository");
    let list = String::from_utf8(output.stdout).expect("paths are UTF-8");
    let texts = list.lines().filter_map(|path| Some((PathBuf::from(path), std::fs::read_to_string(root().join(path)).ok()?)));
    let files: Vec<_> = texts.collect();
    assert!(files.len() > 50, "only {} files found: the rules would check nothing", files.len());
    files
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

/// Test code may unwrap: files of tests, and everything from the first `#[cfg(test)]` on.
fn is_test_file(path: &Path) -> bool {
    let text = path.to_string_lossy();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    text.split('/').any(|part| part == "tests")
        || name == "tests.rs"
        || name == "test_kit.rs"
        || name.ends_with("_test.rs")
        || name.starts_with("test_")
}

fn assert_none(what: &str, problems: &[String]) {
    assert!(problems.is_empty(), "{what}:\n  {}", problems.join("\n  "));
}

#[test]
fn every_module_opens_with_what_it_is_for() {
    let problems: Vec<String> = files()
        .iter()
        .filter(|(path, _)| has_extension(path, "rs") && !is_test_file(path))
        .filter(|(_, text)| !text.trim_start().starts_with("//!"))
        .map(|(path, _)| path.display().to_string())
        .collect();
    assert_none("without `//!` at the top", &problems);
}

#[test]
fn no_file_holds_several_ideas() {
    let mut refused = Vec::new();
    for (path, text) in files().iter().filter(|(path, _)| has_extension(path, "rs")) {
        let lines = text.lines().count();
        if lines > LINES_WANTED_MAX {
            println!("{} has {lines} lines; is there a second idea in it?", path.display());
        }
        if lines > LINES_MAX {
            refused.push(format!("{}: {lines} lines", path.display()));
        }
    }
    assert_none(&format!("more than {LINES_MAX} lines"), &refused);
}

#[test]
fn nothing_outside_of_tests_unwraps() {
    let mut problems = Vec::new();
    for (path, text) in files().iter().filter(|(path, _)| has_extension(path, "rs") && !is_test_file(path)) {
        for (number, line) in text.lines().enumerate().take_while(|(_, line)| !line.contains("#[cfg(test)]")) {
            let code = line.split("//").next().unwrap_or_default();
            if code.contains(".unwrap()") {
                problems.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    assert_none("`expect(\"why it can't fail\")` instead of `unwrap()`", &problems);
}

#[test]
fn unsafe_code_says_why_it_is_sound() {
    let mut problems = Vec::new();
    let block = Regex::new(r"\bunsafe\s*(\{|impl\b)").expect("a pattern");
    for (path, text) in
        files().iter().filter(|(path, _)| has_extension(path, "rs") && path.file_name().is_some_and(|name| name != "tidy.rs"))
    {
        let lines: Vec<&str> = text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if block.is_match(code) && !lines[number.saturating_sub(8)..=number].iter().any(|line| line.contains("SAFETY")) {
                problems.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    assert_none("`unsafe` without a `// SAFETY:` close above it", &problems);
}

#[test]
fn nothing_names_a_path_of_somebodys_machine() {
    let machine = Regex::new(r"(/(root|home/[a-z]+|Users/[a-zA-Z]+|work)/[a-zA-Z.])").expect("a pattern");
    let mut problems = Vec::new();
    for (path, text) in files().iter().filter(|(path, _)| path.file_name().is_some_and(|name| name != "tidy.rs" && name != "Cargo.lock")) {
        for (number, line) in text.lines().enumerate().filter(|(_, line)| machine.is_match(line)) {
            problems.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
        }
    }
    assert_none("a path of one machine", &problems);
}

/// What a connector's parts are known by: the file, its factory, and what carries its rows.
const CONNECTOR_PARTS: [(&str, &str, &[&str]); 2] =
    [("source", "SourceConnector for", &["SourceReader for", "Generator for"]), ("sink", "SinkConnector for", &["SinkWriter for"])];

/// A newcomer who has read one connector finds the same thing in the same file of the next.
#[test]
fn every_connector_folder_has_the_same_files() {
    let connectors = root().join("connectors");
    let mut folders: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for entry in std::fs::read_dir(&connectors).expect("connectors/ is there").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        // Not a connector: what several of them share; crates of their own behind the log port.
        if !entry.path().is_dir() || entry.path().join("Cargo.toml").exists() || ["formats", "generator"].contains(&name.as_str()) {
            continue;
        }
        let files = std::fs::read_dir(entry.path()).expect("a folder").flatten();
        let named = files.map(|file| (file.file_name().to_string_lossy().into_owned(), file.path()));
        folders.insert(name, named.filter_map(|(file, path)| Some((file, std::fs::read_to_string(path).ok()?))).collect());
    }
    assert!(!folders.is_empty(), "no connector found");
    let mut problems = Vec::new();
    for (name, files) in &folders {
        let is_code = |file: &str| file.ends_with(".rs") && !is_test_file(Path::new(file));
        let code: Vec<(&String, &String)> = files.iter().filter(|(file, _)| is_code(file)).collect();
        let mut wanted: Vec<String> = ["mod.rs", "options.rs", "README.md"].map(str::to_string).into();
        for (part, factory, ports) in CONNECTOR_PARTS {
            let own_file = format!("{part}.rs");
            let has = |text: &str| ports.iter().any(|port| text.contains(*port));
            if files.contains_key(&own_file) || code.iter().any(|(_, text)| text.contains(factory)) {
                wanted.extend([own_file.clone(), format!("{part}_test.rs")]);
                if files.get("mod.rs").is_none_or(|text| !text.contains(factory)) {
                    problems.push(format!("connectors/{name}: `impl {factory} …` belongs in mod.rs"));
                }
                if files.get(&own_file).is_none_or(|text| !has(text)) {
                    problems.push(format!("connectors/{name}: {own_file} has no `impl {} …`", ports.join(" …` or `impl ")));
                }
            }
            for (file, _) in code.iter().filter(|(file, text)| **file != own_file && has(text)) {
                problems.push(format!("connectors/{name}/{file}: what makes or takes the rows belongs in {own_file}"));
            }
        }
        if wanted.len() == 3 {
            problems.push(format!("connectors/{name} makes neither sources nor sinks"));
        }
        for file in wanted.iter().filter(|file| !files.contains_key(*file)) {
            problems.push(format!("connectors/{name} has no {file}"));
        }
        if files.contains_key("tests.rs") {
            problems.push(format!("connectors/{name}: tests.rs belongs in source_test.rs or sink_test.rs"));
        }
    }
    assert_none("connectors differ in their files", &problems);
}

#[test]
fn documents_name_make_targets_and_files_that_exist() {
    let files = files();
    let makefile = std::fs::read_to_string(root().join("Makefile")).expect("there is a Makefile");
    let targets: BTreeSet<&str> = makefile.lines().filter_map(|line| line.split_once(':')).map(|(target, _)| target).collect();
    let make = Regex::new(r"`(?:[A-Z_]+=\S+ )*make ([a-z-]+)").expect("a pattern");
    let link = Regex::new(r"\]\(([^)#:]+)\)").expect("a pattern");
    let mut problems = Vec::new();
    for (path, text) in files.iter().filter(|(path, _)| has_extension(path, "md")) {
        for found in make.captures_iter(text).filter(|found| !targets.contains(&found[1])) {
            problems.push(format!("{}: make {} is no target", path.display(), &found[1]));
        }
        let folder = root().join(path).parent().map(Path::to_path_buf).unwrap_or_default();
        for found in link.captures_iter(text).filter(|found| !folder.join(&found[1]).exists()) {
            problems.push(format!("{}: {} does not exist", path.display(), &found[1]));
        }
    }
    assert_none("documents that are no longer true", &problems);
}

/// The invariants are stated once, in ARCHITECTURE.md; code and documents may only name those.
#[test]
fn invariants_that_are_named_are_stated() {
    let architecture = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("there is an ARCHITECTURE.md");
    let id = Regex::new(r"\b([EOCKM])-([0-9]{1,2})\b").expect("a pattern");
    let stated: BTreeSet<String> = architecture
        .lines()
        .filter(|line| line.starts_with("| **"))
        .flat_map(|line| id.find(line))
        .map(|found| found.as_str().to_string())
        .collect();
    assert!(stated.contains("E-1") && stated.contains("M-1"), "ARCHITECTURE.md states the invariants as `| **E-1** | …`");
    let mut problems = BTreeSet::new();
    for (path, text) in files().iter().filter(|(path, _)| has_extension(path, "rs") || has_extension(path, "md")) {
        for found in id.find_iter(text).filter(|found| !stated.contains(found.as_str())) {
            problems.insert(format!("{}: {}", path.display(), found.as_str()));
        }
    }
    assert_none("not stated in ARCHITECTURE.md", &problems.into_iter().collect::<Vec<_>>());
}
