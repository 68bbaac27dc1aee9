//! Reading a tree of attributes as sysfs is one: small text files, whose absence is often an answer and whose content
//! may be anything. What is odd is remarked upon and otherwise treated as not there.

use super::ids::{IdList, NodeId, excerpt};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

/// The longest attribute that is read. Sysfs gives a page at most, `cpulist` and the like somewhat more.
const LONGEST: u64 = 64 << 10;
/// The most entries of a directory that are looked at.
const MOST_ENTRIES: usize = 1 << 16;

/// Something in the tree that is not as the kernel documents it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Remark {
    /// Where.
    pub path: PathBuf,
    /// What is wrong there.
    pub what: String,
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.what)
    }
}

/// A tree, and what has been remarked about it so far.
#[derive(Debug)]
pub(super) struct Tree<'a> {
    root: &'a Path,
    remarks: RefCell<Vec<Remark>>,
}

impl<'a> Tree<'a> {
    pub(super) fn new(root: &'a Path) -> Self {
        Self { root, remarks: RefCell::default() }
    }

    /// A directory, whether it is there or not.
    pub(super) fn dir(&self, path: &str) -> Dir<'_> {
        Dir { tree: self, path: PathBuf::from(path) }
    }

    pub(super) fn into_remarks(self) -> Vec<Remark> {
        let mut remarks = self.remarks.into_inner();
        remarks.sort();
        remarks.dedup();
        remarks
    }
}

/// A directory of the tree.
#[derive(Clone, Debug)]
pub(super) struct Dir<'a> {
    tree: &'a Tree<'a>,
    /// Below the root.
    path: PathBuf,
}

/// A directory whose name is a word and numbers, such as `node2` or `dax0.1`.
#[derive(Clone, Debug)]
pub(super) struct Numbered<'a> {
    pub(super) numbers: Vec<u32>,
    pub(super) name: String,
    pub(super) dir: Dir<'a>,
}

impl<'a> Dir<'a> {
    /// What lies in it under a name.
    pub(super) fn at(&self, name: impl AsRef<Path>) -> Self {
        Self { tree: self.tree, path: self.path.join(name) }
    }

    pub(super) fn exists(&self) -> bool {
        self.place().exists()
    }

    /// Remarks on what lies in it under a name.
    pub(super) fn remark(&self, name: &str, what: impl Into<String>) {
        let path = if name.is_empty() { self.path.clone() } else { self.path.join(name) };
        self.tree.remarks.borrow_mut().push(Remark { path: Path::new("/").join(path), what: what.into() });
    }

    /// What lies in it under `prefix` and a number, or several with dots between: ascending by these.
    pub(super) fn numbered(&self, prefix: &str) -> Vec<Numbered<'a>> {
        let entries = match self.place().read_dir() {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Vec::new(),
            Err(error) => {
                self.remark("", format!("cannot be listed: {error}"));
                return Vec::new();
            }
        };
        let mut found: Vec<Numbered<'_>> = entries
            .flatten()
            .take(MOST_ENTRIES)
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter_map(|name| {
                let numbers = numbers(name.strip_prefix(prefix)?)?;
                Some(Numbered { numbers, dir: self.at(&name), name })
            })
            .collect();
        found.sort_by(|a, b| a.numbers.cmp(&b.numbers));
        found
    }

    /// The text of an attribute without the blanks around it, if it is there.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        match read_text(&self.at(name).place()) {
            Ok(text) => Some(text.trim().to_owned()),
            // Addresses are shown to root only; that is no oddity.
            Err(Unread::Missing | Unread::Forbidden) => None,
            Err(Unread::Odd(what)) => {
                self.remark(name, what);
                None
            }
        }
    }

    /// As [`Dir::text`]; absence is remarked upon.
    pub(super) fn required_text(&self, name: &str) -> Option<String> {
        let text = self.text(name);
        if text.is_none() && matches!(read_text(&self.at(name).place()), Err(Unread::Missing | Unread::Forbidden)) {
            self.remark(name, "is not there, or not for this user");
        }
        text
    }

    /// An attribute that is a number, decimal or with `0x`.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.parsed(name, &self.text(name)?, "a number", number)
    }

    /// As [`Dir::number`]; absence is remarked upon.
    pub(super) fn required_number(&self, name: &str) -> Option<u64> {
        self.parsed(name, &self.required_text(name)?, "a number", number)
    }

    /// An attribute that is a number of which 0 stands for "not known".
    pub(super) fn figure(&self, name: &str) -> Option<u64> {
        self.number(name).filter(|figure| *figure != 0)
    }

    /// An attribute that names a node; −1 is none.
    pub(super) fn node(&self, name: &str) -> Option<NodeId> {
        let text = self.text(name).filter(|text| text != "-1")?;
        self.parsed(name, &text, "the number of a node", |text| text.parse().ok().and_then(NodeId::new))
    }

    /// An attribute that is a list of numbers below a limit, such as `0-3,8`.
    pub(super) fn list(&self, name: &str, limit: u32) -> Option<IdList> {
        self.parsed_list(name, &self.text(name)?, limit)
    }

    /// As [`Dir::list`]; absence is remarked upon.
    pub(super) fn required_list(&self, name: &str, limit: u32) -> Option<IdList> {
        self.parsed_list(name, &self.required_text(name)?, limit)
    }

    fn parsed_list(&self, name: &str, text: &str, limit: u32) -> Option<IdList> {
        IdList::parse(text, limit).inspect_err(|wrong| self.remark(name, wrong.to_string())).ok()
    }

    /// Parses what an attribute says; remarks if that fails.
    pub(super) fn parsed<T>(
        &self,
        name: &str,
        text: &str,
        wanted: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let parsed = parse(text);
        if parsed.is_none() {
            self.remark(name, format!("'{}' is not {wanted}", excerpt(text)));
        }
        parsed
    }

    /// Where a link under this name points to, as it is written; `None` when there is none.
    pub(super) fn link(&self, name: &str) -> Option<PathBuf> {
        self.at(name).place().read_link().ok()
    }

    /// Where the directory is itself a link to, else where it is: names of the devices that it hangs below.
    pub(super) fn lineage(&self) -> Vec<String> {
        let path = self.place().read_link().unwrap_or_else(|_| self.path.clone());
        path.iter().map(|part| part.to_string_lossy().into_owned()).collect()
    }

    fn place(&self) -> PathBuf {
        self.tree.root.join(&self.path)
    }
}

/// Why an attribute has no text.
enum Unread {
    Missing,
    Forbidden,
    Odd(String),
}

impl From<io::Error> for Unread {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => Self::Missing,
            ErrorKind::PermissionDenied => Self::Forbidden,
            _ => Self::Odd(format!("cannot be read: {error}")),
        }
    }
}

fn read_text(path: &Path) -> Result<String, Unread> {
    // Looked at first: to open a FIFO would wait for its other end.
    if !path.metadata()?.is_file() {
        return Err(Unread::Odd("is not a file".to_owned()));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(LONGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LONGEST {
        return Err(Unread::Odd(format!("is longer than {LONGEST} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| Unread::Odd("is not text".to_owned()))
}

/// `7`, `0x1f00` (sysfs writes sizes and addresses either way).
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) if digits.bytes().all(|digit| digit.is_ascii_hexdigit()) => u64::from_str_radix(digits, 16).ok(),
        Some(_) => None,
        None if text.bytes().all(|digit| digit.is_ascii_digit()) => text.parse().ok(),
        None => None,
    }
}

/// The numbers of `3` or `0.12`.
fn numbers(text: &str) -> Option<Vec<u32>> {
    text.split('.').map(|part| part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse().ok())?).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_decimal_or_hexadecimal_and_nothing_else() {
        assert_eq!(number("268435456"), Some(0x1000_0000));
        assert_eq!(number("0x10000000"), Some(0x1000_0000));
        for text in ["", "0x", "+1", "-1", "0x+1", "1 2", "18446744073709551616", "0x10000000000000000"] {
            assert_eq!(number(text), None, "{text:?}");
        }
    }

    #[test]
    fn entries_come_in_the_order_of_their_numbers() {
        let folder = tempfile::tempdir().expect("a directory");
        for name in ["dax10.0", "dax9.1", "dax9.0", "dax", "daxx", "dax1.", "dax+1", "other0"] {
            std::fs::write(folder.path().join(name), "").expect("write");
        }
        let tree = Tree::new(folder.path());
        let names: Vec<String> = tree.dir("").numbered("dax").into_iter().map(|entry| entry.name).collect();
        assert_eq!(names, ["dax9.0", "dax9.1", "dax10.0"]);
    }

    #[test]
    fn an_oddity_becomes_a_remark_and_absence_does_not() {
        let folder = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(folder.path().join("size")).expect("a directory");
        std::fs::write(folder.path().join("align"), "two\nmebibytes").expect("write");
        std::fs::write(folder.path().join("binary"), b"\xff\xfe").expect("write");
        let tree = Tree::new(folder.path());
        let dir = tree.dir("");
        assert_eq!((dir.number("size"), dir.number("align"), dir.text("binary")), (None, None, None));
        assert_eq!((dir.number("absent"), dir.required_number("wanted")), (None, None));
        let remarks: Vec<String> = tree.into_remarks().iter().map(ToString::to_string).collect();
        assert_eq!(
            remarks,
            [
                "/align: 'two\\nmebibytes' is not a number",
                "/binary: is not text",
                "/size: is not a file",
                "/wanted: is not there, or not for this user",
            ]
        );
    }
}
