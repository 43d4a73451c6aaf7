//! Filters, by which a client selects records of a list (containerd's `pkg/filters`).
//!
//! ```text
//! filters   a list of filter; matches if any of them does, or if the list is empty
//! filter    selector ("," selector)*                     matches if all selectors do; "" matches everything
//! selector  path                                         the field is present
//!         | path ("==" | "!=" | "~=") value              "~=" is an unanchored regular expression
//! path      field ("." field)*
//! field     [A-Za-z0-9_]+ | quoted                       labels."a.b/c"
//! value     quoted | printable characters but "," and space
//! quoted    "…" with Go's escapes; after "~=" also /…/ and |…| with the same escapes, where unknown escapes are left
//!           to the regular expression
//! ```
//!
//! White space may stand before any token. An absent field counts as empty text for `!=` and `~=`, and equals nothing
//! for `==`. Regular expressions have Go's syntax: see [`expression`].

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::str::FromStr;

use regex_lite::Regex;

use crate::{Error, Labels, Result};

/// A record that can be filtered.
pub trait Fields {
    /// The value of the field at `path`, or `None` if the record does not have it.
    fn field(&self, path: &FieldPath) -> Option<Cow<'_, str>>;
}

/// The path of a field. `labels.a.b` has three names, the head `labels` and the rest `a.b`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldPath {
    /// At least one.
    names: Vec<String>,
    rest: String,
}

impl FieldPath {
    pub fn head(&self) -> &str {
        &self.names[0]
    }

    /// The names of the path, of which there is at least one. A quoted name may have dots.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The name after the head. Empty if the path is only a head.
    pub fn second(&self) -> &str {
        self.names.get(1).map_or("", String::as_str)
    }

    /// The path after the head, joined by dots. Empty if the path is only a head.
    pub fn rest(&self) -> &str {
        &self.rest
    }

    /// The label whose key is the rest of the path.
    pub fn label<'a>(&self, labels: &'a Labels) -> Option<Cow<'a, str>> {
        labels.get(&self.rest).map(|value| Cow::Borrowed(value.as_str()))
    }
}

/// A text field, which is present unless it is empty, as for most fields of containerd.
pub fn present(text: &str) -> Option<Cow<'_, str>> {
    (!text.is_empty()).then_some(Cow::Borrowed(text))
}

/// A list of filters. Matches when any of them does, or when the list is empty.
#[derive(Clone, Debug, Default)]
pub struct Filters(Vec<Filter>);

impl Filters {
    /// The empty list, which matches everything.
    pub fn all() -> Filters {
        Filters::default()
    }

    /// Parses filters. `InvalidArgument` names the filter, the position and the reason.
    pub fn parse<T: AsRef<str>>(texts: &[T]) -> Result<Filters> {
        texts.iter().map(|text| text.as_ref().parse()).collect::<Result<_>>().map(Filters)
    }

    pub fn matches(&self, record: &impl Fields) -> bool {
        self.0.is_empty() || self.0.iter().any(|filter| filter.matches(record))
    }

    /// The values, sorted, of which `field` must equal one for a record to match. `None` if records with other values
    /// can match too. A store with an index on the field need not visit the other records.
    pub fn values_of(&self, field: &str) -> Option<BTreeSet<&str>> {
        if self.0.is_empty() { None } else { self.0.iter().map(|filter| filter.value_of(field)).collect() }
    }

    /// Whether this matches every record, whatever its fields are.
    pub fn is_all(&self) -> bool {
        self.0.is_empty() || self.0.iter().any(|filter| filter.0.is_empty())
    }
}

/// A list of selectors. Matches when all of them do.
#[derive(Clone, Debug)]
pub struct Filter(Vec<Selector>);

impl Filter {
    pub fn matches(&self, record: &impl Fields) -> bool {
        self.0.iter().all(|selector| selector.matches(record))
    }

    /// The value that `field` must equal for this filter to match, if there is one.
    fn value_of(&self, field: &str) -> Option<&str> {
        self.0.iter().find_map(|selector| selector.value_of(field))
    }
}

impl FromStr for Filter {
    type Err = Error;

    fn from_str(text: &str) -> Result<Filter> {
        if text.is_empty() {
            return Ok(Filter(Vec::new()));
        }
        Parser::new(text).filter().map_err(|Failure { at, why }| {
            Error::invalid_argument(format!("invalid filter {text:?}: at position {at}: {why}"))
        })
    }
}

#[derive(Clone, Debug)]
struct Selector {
    path: FieldPath,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

impl Selector {
    fn value_of(&self, field: &str) -> Option<&str> {
        match &self.test {
            Test::Equal(value) if self.path.head() == field && self.path.rest().is_empty() => Some(value),
            _ => None,
        }
    }

    fn matches(&self, record: &impl Fields) -> bool {
        let field = record.field(&self.path);
        match &self.test {
            Test::Present => field.is_some(),
            Test::Equal(value) => field.is_some_and(|field| field == *value),
            Test::NotEqual(value) => field.unwrap_or_default() != *value,
            Test::Matches(regex) => regex.is_match(&field.unwrap_or_default()),
        }
    }
}

/// Translates a regular expression of Go (`regexp/syntax`) for the crate `regex_lite`. In Go, `[` in a class and a `{`
/// that begins no repetition are literal, classes have no set operators such as `&&`, and `\Q…\E` is literal text.
fn expression(go: &str) -> String {
    let mut out = String::with_capacity(go.len());
    let mut rest = go;
    // Inside a class: whether its first item has been read, after which a `]` ends it.
    let mut class: Option<bool> = None;
    while let Some(found) = rest.chars().next() {
        let (mut len, mut escaped, was_in) = (found.len_utf8(), false, class);
        class = class.map(|_| true);
        match (found, was_in) {
            ('\\', None) if rest.starts_with(r"\Q") => {
                let literal = &rest[2..];
                let (literal, after) = literal.split_once(r"\E").unwrap_or((literal, ""));
                out += &regex_lite::escape(literal);
                rest = after;
                continue;
            }
            ('\\', _) => len += rest[1..].chars().next().map_or(0, char::len_utf8),
            ('[', None) => {
                len += usize::from(rest[1..].starts_with('^'));
                class = Some(false);
            }
            ('[', Some(_)) => {
                // `[:alpha:]`
                let named = rest.strip_prefix("[:").and_then(|name| name.find(":]"));
                escaped = named.is_none();
                len = named.map_or(len, |end| end + 4);
            }
            (']', Some(true)) => class = None,
            ('&' | '~', Some(_)) => escaped = true,
            // `regex_lite` reads `--` in a class as an operator; in Go the second dash ends a range, or is literal.
            ('-', Some(_)) => escaped = out.ends_with('-'),
            ('{', None) => escaped = !begins_count(&rest[1..]),
            _ => {}
        }
        if escaped {
            out.push('\\');
        }
        out += &rest[..len];
        rest = &rest[len..];
    }
    out
}

/// Whether a `{` followed by `rest` begins a repetition: `{2}`, `{2,}` or `{2,5}`.
fn begins_count(rest: &str) -> bool {
    let Some((count, _)) = rest.split_once('}') else { return false };
    let (least, most) = count.split_once(',').unwrap_or((count, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    !least.is_empty() && digits(least) && digits(most)
}

struct Failure {
    /// The byte offset in the filter.
    at: usize,
    why: String,
}

fn fail<T>(at: usize, why: impl Into<String>) -> Result<T, Failure> {
    Err(Failure { at, why: why.into() })
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

/// Which characters quote a value here: `"` alone, or `/` and `|` too.
#[derive(Clone, Copy, PartialEq)]
enum Quotes {
    Double,
    Regex,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Parser<'a> {
        Parser { text, at: 0 }
    }

    fn filter(&mut self) -> Result<Filter, Failure> {
        let mut selectors = vec![self.selector()?];
        loop {
            match self.peek() {
                None => return Ok(Filter(selectors)),
                Some(',') => self.at += 1,
                Some(other) => return fail(self.at, format!("unexpected input: {other}")),
            }
            selectors.push(self.selector()?);
        }
    }

    fn selector(&mut self) -> Result<Selector, Failure> {
        let path = self.path()?;
        if matches!(self.peek(), None | Some(',')) {
            return Ok(Selector { path, test: Test::Present });
        }
        let operator = self.operator()?;
        let quotes = if operator == "~=" { Quotes::Regex } else { Quotes::Double };
        let (at, value) = self.value(quotes)?;
        let test = match operator {
            "==" => Test::Equal(value),
            "!=" => Test::NotEqual(value),
            _ => match Regex::new(&expression(&value)) {
                Ok(regex) => Test::Matches(regex),
                Err(error) => return fail(at, format!("bad regular expression: {error}")),
            },
        };
        Ok(Selector { path, test })
    }

    fn path(&mut self) -> Result<FieldPath, Failure> {
        let mut names = vec![self.field()?];
        while self.peek() == Some('.') {
            self.at += 1;
            names.push(self.field()?);
        }
        let rest = names[1..].join(".");
        Ok(FieldPath { names, rest })
    }

    fn field(&mut self) -> Result<String, Failure> {
        self.skip_space();
        match self.peek() {
            Some('"' | '/' | '|') => self.quoted(Quotes::Double),
            _ => match self.run(|found| found.is_ascii_alphanumeric() || found == '_') {
                "" => fail(self.at, "expected field or quoted"),
                field => Ok(field.to_owned()),
            },
        }
    }

    fn operator(&mut self) -> Result<&'a str, Failure> {
        self.skip_space();
        let at = self.at;
        match self.run(|found| matches!(found, '=' | '!' | '~')) {
            operator @ ("==" | "!=" | "~=") => Ok(operator),
            "" => fail(at, r#"expected an operator ("=="|"!="|"~=")"#),
            other => fail(at, format!("unsupported operator {other:?}")),
        }
    }

    /// Parses a value. Also returns the byte offset at which it begins.
    fn value(&mut self, quotes: Quotes) -> Result<(usize, String), Failure> {
        self.skip_space();
        let at = self.at;
        match self.peek() {
            Some('"' | '/' | '|') => return Ok((at, self.quoted(quotes)?)),
            None | Some(',' | '.' | '=' | '!' | '~') => return fail(at, "expected value or quoted"),
            Some(_) => {}
        }
        let printable = |found: char| found != ',' && !found.is_whitespace() && !found.is_control();
        match self.run(printable) {
            "" => fail(at, "expected value or quoted"),
            value => Ok((at, value.to_owned())),
        }
    }

    fn quoted(&mut self, quotes: Quotes) -> Result<String, Failure> {
        let at = self.at;
        let quote = self.next().expect("the caller has seen a quote");
        if quote != '"' && quotes == Quotes::Double {
            return fail(at, "invalid quote encountered");
        }
        let mut value = Vec::new();
        loop {
            match self.next() {
                None | Some('\n') => return fail(at, "quoted literal not terminated"),
                Some(found) if found == quote => break,
                Some('\\') => self.escape(quote, &mut value)?,
                Some(found) => value.extend_from_slice(found.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        String::from_utf8(value).or_else(|_| fail(at, "quoted literal is not UTF-8"))
    }

    /// Parses the characters after a backslash.
    fn escape(&mut self, quote: char, value: &mut Vec<u8>) -> Result<(), Failure> {
        let at = self.at - 1;
        let illegal = || fail(at, "illegal escape sequence");
        let Some(found) = self.next() else { return fail(at, "quoted literal not terminated") };
        let byte = match found {
            '\\' => b'\\',
            _ if found == quote => quote as u8,
            'a' => 0x07,
            'b' => 0x08,
            'f' => 0x0C,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 0x0B,
            '0'..='7' => {
                self.at -= 1;
                match self.digits(8, 3).map(u8::try_from) {
                    Some(Ok(byte)) => byte,
                    _ => return illegal(),
                }
            }
            'x' => match self.digits(16, 2).map(u8::try_from) {
                Some(Ok(byte)) => byte,
                _ => return illegal(),
            },
            'u' | 'U' => {
                let len = if found == 'u' { 4 } else { 8 };
                let Some(found) = self.digits(16, len).and_then(char::from_u32) else { return illegal() };
                value.extend_from_slice(found.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            _ if quote != '"' => {
                value.push(b'\\');
                value.extend_from_slice(found.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            _ => return illegal(),
        };
        value.push(byte);
        Ok(())
    }

    fn digits(&mut self, radix: u32, len: usize) -> Option<u32> {
        let digits = self.text.get(self.at..self.at + len)?;
        if !digits.chars().all(|digit| digit.is_digit(radix)) {
            return None;
        }
        self.at += len;
        u32::from_str_radix(digits, radix).ok()
    }

    fn skip_space(&mut self) {
        self.run(char::is_whitespace);
    }

    fn run(&mut self, belongs: impl Fn(char) -> bool) -> &'a str {
        let rest = &self.text[self.at..];
        let len = rest.find(|found| !belongs(found)).unwrap_or(rest.len());
        self.at += len;
        &rest[..len]
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let found = self.peek()?;
        self.at += found.len_utf8();
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Record {
        name: &'static str,
        labels: Labels,
    }

    impl Fields for Record {
        fn field(&self, path: &FieldPath) -> Option<Cow<'_, str>> {
            match path.head() {
                "name" => present(self.name),
                "labels" => path.label(&self.labels),
                _ => None,
            }
        }
    }

    /// Checks the names of the records that match.
    fn check(filters: &[&str], expected: &[&str]) {
        let record = |name, labels: &[(&str, &str)]| Record {
            name,
            labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        };
        let records = [
            record("foo", &[("a", "1"), ("a.b/c", "x,y")]),
            record("foobar", &[("a", "2"), ("empty", "")]),
            record("bar/baz", &[("more", "Tea \"time\"")]),
        ];
        let parsed = Filters::parse(filters).unwrap_or_else(|error| panic!("{filters:?}: {error}"));
        let found: Vec<&str> =
            records.iter().filter(|record| parsed.matches(*record)).map(|record| record.name).collect();
        assert_eq!(found, expected, "{filters:?}");
    }

    #[test]
    fn a_filter_tells_the_values_that_a_field_must_have() {
        let check = |filters: &[&str], expected: Option<&[&str]>| {
            let filters = Filters::parse(filters).unwrap();
            let values: Option<Vec<_>> = filters.values_of("name").map(|values| values.into_iter().collect());
            assert_eq!(values.as_deref(), expected, "{filters:?}");
        };
        check(&["name==b", "labels.a==1,name==a", "name==b,name!=a"], Some(&["a", "b"]));
        check(&["name==a,name==b"], Some(&["a"]));
        for open in [&[][..], &[""], &["name!=a"], &["name"], &["name~=^a$"], &["name==a", "labels.a"]] {
            check(open, None);
        }
        check(&["name.of==a"], None);
        check(&["labels.name==a"], None);
    }

    #[test]
    fn filters_select_as_containerds_do() {
        let all = ["foo", "foobar", "bar/baz"];
        check(&[], &all);
        check(&[""], &all);
        check(&["name"], &all);
        check(&["nothing"], &[]);
        check(&["name==foo"], &["foo"]);
        check(&["name == foo"], &["foo"]);
        check(&[" name==foo, labels.a==1"], &["foo"]);
        check(&["name!=foo"], &["foobar", "bar/baz"]);
        check(&["name~=foo"], &["foo", "foobar"]);
        check(&["name~=^foo$"], &["foo"]);
        check(&["name~=/^ba/"], &["bar/baz"]);
        check(&[r"name~=/r\/b/"], &["bar/baz"]);
        // Go's escapes of strings come first: this is a backspace, not a word boundary.
        check(&[r"name~=/\bfo+x?/"], &[]);
        check(&[r"name~=\bfo+x?"], &["foo", "foobar"]);
        check(&[r"name~=/\x66o\157\u0062/"], &["foobar"]);
        check(&[r"name~=|^ba\w/|"], &["bar/baz"]);
        check(&[r"name~=/^b\\w+\/baz/"], &["bar/baz"]);
        check(&["name~=^foo$|^bar"], &["foo", "bar/baz"]);
        check(&["name==foo", "name==foobar"], &["foo", "foobar"]);
        check(&["labels.a"], &["foo", "foobar"]);
        check(&["labels.a==1"], &["foo"]);
        check(&["labels.a!=1"], &["foobar", "bar/baz"]);
        check(&["labels.a~=/./"], &["foo", "foobar"]);
        check(&["labels.a~=/.*/"], &all);
        check(&["labels.missing!=x"], &all);
        check(&["labels.missing~=x"], &[]);
        check(&["labels.missing~=/^$/"], &all);
        check(&["labels.a~=/^$/"], &["bar/baz"]);
        check(&["labels.empty"], &["foobar"]);
        check(&["labels.empty==\"\""], &["foobar"]);
        check(&[r#"labels."a.b/c"=="x,y""#], &["foo"]);
        check(&[r#"labels.more=="Tea \"time\"""#], &["bar/baz"]);
        check(&[r#"labels.more=="Tea\x20\u0022time\042""#], &["bar/baz"]);
        check(&["labels.a==1,name==foobar"], &[]);
        check(&["name==bar/baz"], &["bar/baz"]);
        check(&[r#""name"==foo"#], &["foo"]);
    }

    /// The expected values are containerd 2.3's.
    #[test]
    fn regular_expressions_have_gos_syntax() {
        for (expression, expected) in [
            ("[[a]r/b", &["bar/baz"][..]),
            ("[[a]r", &["foobar", "bar/baz"]),
            ("[a&&b]r", &["foobar", "bar/baz"]),
            ("[]b]a", &["foobar", "bar/baz"]),
            ("[^]b]a", &[]),
            ("[[:alpha:]x]/", &["bar/baz"]),
            (r"[\]b]a", &["foobar", "bar/baz"]),
            ("fo{2}$", &["foo"]),
            ("fo{1,}b", &["foobar"]),
            ("o{,2}", &[]),
            ("{", &[]),
            ("x{|^foo$", &["foo"]),
            (r"\Qr/b\Ea", &["bar/baz"]),
            (r"^\Qfo", &["foo", "foobar"]),
        ] {
            check(&[&format!("name~={expression:?}")], expected);
        }
    }

    #[test]
    fn a_malformed_filter_is_refused_with_its_position() {
        let cases = [
            ("name=", 4, "unsupported operator"),
            ("name==", 6, "expected value"),
            ("name===x", 4, "unsupported operator"),
            ("name=x", 4, "unsupported operator"),
            ("==x", 0, "expected field"),
            ("name==x,", 8, "expected field"),
            (",name", 0, "expected field"),
            ("name,,x", 5, "expected field"),
            ("name.==x", 5, "expected field"),
            ("name==a b", 7, "unexpected input"),
            ("name ", 5, "expected an operator"),
            ("name x", 5, "expected an operator"),
            ("name==\"x", 6, "not terminated"),
            ("name==/x/", 6, "invalid quote"),
            (r#"name=="\q""#, 7, "illegal escape"),
            (r#"name=="\400""#, 7, "illegal escape"),
            ("name~=(", 6, "bad regular expression"),
            ("ä==x", 0, "expected field"),
        ];
        for (text, at, why) in cases {
            let error = text.parse::<Filter>().expect_err(text).to_string();
            assert!(error.contains(&format!("at position {at}:")), "{text}: {error}");
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
