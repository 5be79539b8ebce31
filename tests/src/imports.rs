//! Which file of a crate imports from which, read from its sources: what the test of the architecture looks at.
//!
//! The reader knows tokens, not Rust: it takes every path in `use` trees, code, attributes and macros, and resolves
//! those that lead to a module of the same crate. A name that a module only re-exports leads to the file that the
//! re-export names, so that a `mod.rs` hides no cycle. Comments and strings are no tokens; what is `#[cfg(test)]` is
//! skipped.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// Which file imports from which, by path below the crate's `src`.
pub type Graph = BTreeMap<PathBuf, BTreeSet<PathBuf>>;

/// A module's place in its crate: `["store", "cache"]`, empty for the crate's root.
type ModulePath = Vec<String>;

/// What a source file says.
#[derive(Default)]
struct Source {
    file: PathBuf,
    /// Paths that its code and its private `use` declarations name, each with the module around it.
    paths: Vec<(ModulePath, Vec<String>)>,
    /// What its `use` declarations give a name to.
    names: BTreeMap<String, (ModulePath, Vec<String>)>,
    /// The names that it re-exports.
    exports: BTreeSet<String>,
    /// Every word of its code, `use` declarations left out.
    words: BTreeSet<String>,
}

/// Reads a crate's sources, `main.rs` left out: nothing can import from it.
///
/// # Panics
/// If a file cannot be read, or is not Rust.
pub fn graph(src: &Path) -> Graph {
    let sources: BTreeMap<ModulePath, Source> =
        files(src).into_iter().filter(|file| file != Path::new("main.rs")).map(|file| read(src, file)).collect();
    sources.iter().map(|(module, source)| (source.file.clone(), edges(&sources, module, source))).collect()
}

/// All `.rs` files below a folder, by path below it; other folders than build artefacts and hidden ones are entered.
///
/// # Panics
/// If a folder cannot be read.
pub fn files(top: &Path) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![PathBuf::new()]);
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(top.join(&folder)).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        for entry in entries.flatten() {
            let path = folder.join(entry.file_name());
            let is_hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
            let is_built = entry.file_name() == "target" || entry.path().join("CACHEDIR.TAG").exists();
            if entry.path().is_dir() && !is_hidden && !is_built {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The shortest way from a file back to itself, if there is one.
pub fn cycle(graph: &Graph, start: &Path) -> Option<Vec<PathBuf>> {
    let mut queue = VecDeque::from([vec![start.to_owned()]]);
    let mut visited = BTreeSet::new();
    while let Some(way) = queue.pop_front() {
        for next in graph.get(way.last()?).into_iter().flatten() {
            if next == start {
                return Some(way);
            }
            if visited.insert(next) {
                queue.push_back([way.as_slice(), std::slice::from_ref(next)].concat());
            }
        }
    }
    None
}

fn read(src: &Path, file: PathBuf) -> (ModulePath, Source) {
    let text = fs::read_to_string(src.join(&file)).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let tokens: TokenStream = text.parse().unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let mut module: ModulePath =
        file.with_extension("").iter().map(|part| part.to_str().expect("UTF-8").to_owned()).collect();
    module.pop_if(|last| last == "mod" || (last == "lib" && file.iter().count() == 1));
    let mut source = Source { file, ..Source::default() };
    walk(tokens, &module, &mut source);
    (module, source)
}

/// Collects what a list of tokens names; `module` is the module that they are in.
fn walk(tokens: TokenStream, module: &ModulePath, source: &mut Source) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut at = 0;
    let mut is_public = false;
    while let Some(token) = tokens.get(at) {
        match (token, tokens.get(at + 1)) {
            (TokenTree::Punct(punct), Some(TokenTree::Group(group))) if punct.as_char() == '#' && is_test(group) => {
                let ends_item = |token: &TokenTree| is_group(token, Delimiter::Brace) || is_punct(token, ';');
                at += tokens[at..].iter().position(ends_item).unwrap_or(0) + 1;
            }
            (TokenTree::Ident(word), Some(TokenTree::Ident(name))) if word == "mod" => {
                if let Some(TokenTree::Group(body)) = tokens.get(at + 2) {
                    walk(body.stream(), &[module.as_slice(), &[name.to_string()]].concat(), source);
                }
                at += 3;
            }
            (TokenTree::Ident(word), _) if word == "use" => {
                let end = at + tokens[at..].iter().position(|token| is_punct(token, ';')).unwrap_or(1);
                declare(&tokens[at + 1..end], &[], module, is_public, source);
                at = end;
            }
            (TokenTree::Ident(word), Some(TokenTree::Group(group))) if word == "pub" && restricts(group) => {
                is_public = true;
                at += 2;
                continue;
            }
            (TokenTree::Ident(word), _) if word == "pub" => {
                is_public = true;
                at += 1;
                continue;
            }
            (TokenTree::Ident(_), _) => {
                let path = path_at(&tokens[at..]);
                at += path.len() * 3 - 2;
                source.words.insert(path[0].clone());
                if path.len() > 1 {
                    source.paths.push((module.clone(), path));
                }
            }
            (TokenTree::Group(group), _) => {
                walk(group.stream(), module, source);
                at += 1;
            }
            _ => at += 1,
        }
        is_public = false;
    }
}

/// The words of the path that begins here, one at least.
fn path_at(tokens: &[TokenTree]) -> Vec<String> {
    let mut path = vec![tokens[0].to_string()];
    for next in tokens[1..].chunks_exact(3) {
        match next {
            [one, other, TokenTree::Ident(word)] if is_punct(one, ':') && is_punct(other, ':') => {
                path.push(word.to_string());
            }
            _ => break,
        }
    }
    path
}

/// Takes a `use` tree apart.
fn declare(tokens: &[TokenTree], prefix: &[String], module: &ModulePath, is_public: bool, source: &mut Source) {
    'trees: for tree in tokens.split(|token| is_punct(token, ',')) {
        let words = tree.iter().filter(|token| !is_punct(token, ':'));
        let mut path = prefix.to_vec();
        let mut name = None;
        let mut is_renamed = false;
        for word in words {
            match word {
                TokenTree::Group(group) => {
                    let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                    declare(&inner, &path, module, is_public, source);
                    continue 'trees;
                }
                TokenTree::Ident(word) if is_renamed => name = Some(word.to_string()),
                TokenTree::Ident(word) if word == "as" => is_renamed = true,
                TokenTree::Ident(word) if word == "self" && !path.is_empty() => (),
                TokenTree::Ident(word) => path.push(word.to_string()),
                _ => (),
            }
        }
        let Some(name) = name.or_else(|| path.last().cloned()) else { continue };
        if is_public {
            source.exports.insert(name.clone());
        } else {
            source.paths.push((module.clone(), path.clone()));
        }
        source.names.insert(name, (module.clone(), path));
    }
}

/// The files that a module imports from.
fn edges(sources: &BTreeMap<ModulePath, Source>, module: &ModulePath, source: &Source) -> BTreeSet<PathBuf> {
    let is_root = source.file.ends_with("mod.rs") || module.is_empty();
    // A re-export is none of its own, unless the file itself uses the name.
    let exports = source.exports.iter().filter(|name| !is_root || source.words.contains(*name));
    let exports = exports.map(|name| &source.names[name]);
    let paths = source.paths.iter().chain(exports);
    let targets = paths.filter_map(|(around, path)| resolve(sources, module, around, path, 0));
    targets.filter(|file| *file != source.file).collect()
}

/// The file that a path leads to, seen from the inline module `around` of the file of `module`; `None` outside of the
/// crate.
fn resolve(
    sources: &BTreeMap<ModulePath, Source>,
    module: &ModulePath,
    around: &ModulePath,
    path: &[String],
    depth: u32,
) -> Option<PathBuf> {
    let mut place = around.clone();
    let mut rest = path.iter();
    match path.first()?.as_str() {
        "crate" => {
            place.clear();
            rest.next();
        }
        "self" => {
            rest.next();
        }
        "super" => {
            while rest.as_slice().first().is_some_and(|word| word == "super") {
                place.pop();
                rest.next();
            }
        }
        first => {
            let is_child = sources.contains_key(&[module.as_slice(), &[first.to_owned()]].concat());
            match sources[module].names.get(first) {
                Some((around, target)) if !is_child && depth < 8 && target.first()? != first => {
                    let path = [target.as_slice(), &path[1..]].concat();
                    return resolve(sources, module, around, &path, depth + 1);
                }
                _ if !is_child => return None,
                _ => place.clone_from(module),
            }
        }
    }
    // An inline module is in the file around it.
    while !place.is_empty() && !sources.contains_key(&place) {
        place.pop();
    }
    let mut found = place;
    while let Some(word) = rest.next() {
        let child = [found.as_slice(), std::slice::from_ref(word)].concat();
        if sources.contains_key(&child) {
            found = child;
            continue;
        }
        // A name that comes from elsewhere: there is where it leads to.
        if let Some((around, target)) = sources[&found].names.get(word)
            && depth < 8
        {
            let path = [target.as_slice(), rest.as_slice()].concat();
            return resolve(sources, &found, around, &path, depth + 1).or_else(|| Some(sources[&found].file.clone()));
        }
        break;
    }
    Some(sources[&found].file.clone())
}

fn is_punct(token: &TokenTree, char: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == char)
}

fn is_group(token: &TokenTree, delimiter: Delimiter) -> bool {
    matches!(token, TokenTree::Group(group) if group.delimiter() == delimiter)
}

/// Whether an attribute is for tests alone.
fn is_test(attribute: &proc_macro2::Group) -> bool {
    let text: String = attribute.stream().to_string().split_whitespace().collect();
    text == "cfg(test)" || text.starts_with("cfg(all(test,")
}

/// Whether a group behind `pub` says for whom.
fn restricts(group: &proc_macro2::Group) -> bool {
    let first = group.stream().into_iter().next();
    group.delimiter() == Delimiter::Parenthesis
        && first.is_some_and(|word| ["crate", "super", "self", "in"].contains(&word.to_string().as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The graph of a crate of these files.
    fn of(files: &[(&str, &str)]) -> Vec<String> {
        let src = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = src.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let line = |(from, to): (&PathBuf, &PathBuf)| format!("{} -> {}", from.display(), to.display());
        graph(src.path()).iter().flat_map(|(from, to)| to.iter().map(move |to| line((from, to)))).collect()
    }

    #[test]
    fn every_kind_of_path_is_an_import_and_comments_strings_and_tests_are_none() {
        let a = "use crate::{b::{self, Thing as Other}, c};\n// crate::d::no\nconst TEXT: &str = \"crate::d::no\";\n\
                 #[cfg(test)]\nmod tests { use crate::d; }\nfn f() { macro_of!(crate::e::g); c::h(); }";
        let files =
            [("a.rs", a), ("b.rs", "mod inner { use super::super::e; }"), ("c.rs", ""), ("d.rs", ""), ("e.rs", "")];
        assert_eq!(of(&files), ["a.rs -> b.rs", "a.rs -> c.rs", "a.rs -> e.rs", "b.rs -> e.rs"]);
    }

    #[test]
    fn a_re_export_leads_to_where_the_name_comes_from_and_is_no_import_of_its_folder() {
        let files = [
            ("lib.rs", "mod a; mod room; pub use room::Thing;"),
            ("a.rs", "use crate::room::{Own, Thing}; fn f(room: &crate::Thing) {}"),
            ("room/mod.rs", "mod thing; mod user; pub use thing::Thing; pub struct Own;"),
            ("room/thing.rs", "pub struct Thing;"),
            ("room/user.rs", "use super::Thing;"),
        ];
        assert_eq!(of(&files), ["a.rs -> room/mod.rs", "a.rs -> room/thing.rs", "room/user.rs -> room/thing.rs"]);
        let used = [("room/mod.rs", "mod thing; pub use thing::Thing; fn f(thing: Thing) {}"), ("room/thing.rs", "")];
        assert_eq!(of(&used), ["room/mod.rs -> room/thing.rs"]);
    }

    #[test]
    fn the_shortest_cycle_is_found() {
        let graph: Graph = [("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")]
            .map(|(from, to)| (PathBuf::from(from), BTreeSet::from([PathBuf::from(to)])))
            .into();
        assert_eq!(cycle(&graph, Path::new("a")).unwrap(), ["a", "b", "c"].map(PathBuf::from));
        assert_eq!(cycle(&graph, Path::new("d")), None);
    }
}
