//! Parses a template's text to nodes.
//!
//! ```text
//! node     = text | {{assignment}} | {{if|with|range assignment}} node… [{{else}} node…] {{end}}
//! assignment = [$name[, $name] :=|=] pipeline
//! pipeline = command | command …            command = operand operand …
//! operand  = . | .Field… | $name.Field… | function | "text" | 5 | (pipeline).Field…
//! ```

use std::vec::IntoIter;

use serde_json::{Number, Value};

use super::{Why, functions};

pub(super) enum Node {
    Text(String),
    /// Prints its value, unless it assigns it to a variable.
    Action(Assignment),
    Block(Block),
    Break,
    Continue,
}

pub(super) struct Block {
    pub(super) kind: Kind,
    pub(super) head: Assignment,
    pub(super) body: Vec<Node>,
    pub(super) otherwise: Vec<Node>,
}

pub(super) enum Kind {
    If,
    With,
    Range,
}

pub(super) struct Assignment {
    /// The variables' names, without the `$`.
    pub(super) names: Vec<String>,
    /// Whether the variables are declared here (`:=`), in the scope of the block.
    pub(super) is_new: bool,
    pub(super) value: Pipeline,
}

/// Commands, each of which gets the value of the previous one as its last argument.
pub(super) type Pipeline = Vec<Vec<Operand>>;

pub(super) struct Operand {
    pub(super) base: Base,
    pub(super) fields: Vec<String>,
}

pub(super) enum Base {
    Dot,
    /// A variable's name, without the `$`; `$` itself is the empty name.
    Variable(String),
    Function(String),
    Literal(Value),
    Group(Pipeline),
}

pub(super) fn parse(text: &str) -> Why<Vec<Node>> {
    match (Parser { pieces: pieces(text)?.into_iter() }).nodes()? {
        (nodes, None) => Ok(nodes),
        (_, Some(Stop::End)) => Err("an {{end}} without a beginning".into()),
        (_, Some(Stop::Else(_))) => Err("an {{else}} without a beginning".into()),
    }
}

enum Piece<'a> {
    Text(&'a str),
    Action(&'a str),
}

/// Splits the text into literal text and actions, without comments and without what trim marks remove.
fn pieces(text: &str) -> Why<Vec<Piece<'_>>> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let (trims_before, action) = match after.strip_prefix('-') {
            Some(action) if action.starts_with(char::is_whitespace) => (true, action),
            _ => (false, after),
        };
        found.push(Piece::Text(if trims_before { before.trim_end() } else { before }));
        let end = end_of_action(action)?;
        let (action, after) = (&action[..end], &action[end + 2..]);
        let (trims_after, action) = match action.strip_suffix('-') {
            Some(action) if action.ends_with(char::is_whitespace) => (true, action),
            _ => (false, action),
        };
        let action = action.trim();
        if !action.starts_with("/*") {
            found.push(Piece::Action(action));
        }
        rest = if trims_after { after.trim_start() } else { after };
    }
    found.push(Piece::Text(rest));
    Ok(found)
}

/// The position of the `}}` that ends an action, outside quotes and comments.
fn end_of_action(action: &str) -> Why<usize> {
    let mut at = 0;
    loop {
        let rest = &action[at..];
        if rest.starts_with("}}") {
            return Ok(at);
        }
        at += match rest.chars().next() {
            None => return Err("}} is missing".into()),
            Some('/') if rest.starts_with("/*") => rest.find("*/").ok_or("a comment is not closed")? + 2,
            Some('"' | '`') => rest.len() - quoted(rest)?.1.len(),
            Some(letter) => letter.len_utf8(),
        };
    }
}

/// The end of a list of nodes.
enum Stop<'a> {
    End,
    /// `else`, and the words after it: `if .A`.
    Else(&'a str),
}

struct Parser<'a> {
    pieces: IntoIter<Piece<'a>>,
}

impl<'a> Parser<'a> {
    fn nodes(&mut self) -> Why<(Vec<Node>, Option<Stop<'a>>)> {
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.next() {
            let action = match piece {
                Piece::Text(text) => {
                    nodes.push(Node::Text(text.to_owned()));
                    continue;
                }
                Piece::Action(action) => action,
            };
            let (word, rest) = first_word(action);
            nodes.push(match word {
                "end" => return Ok((nodes, Some(Stop::End))),
                "else" => return Ok((nodes, Some(Stop::Else(rest)))),
                "break" => Node::Break,
                "continue" => Node::Continue,
                _ => match kind(word) {
                    Some(kind) => Node::Block(self.block(kind, rest)?),
                    None => Node::Action(assignment(action)?),
                },
            });
        }
        Ok((nodes, None))
    }

    fn block(&mut self, kind: Kind, head: &str) -> Why<Block> {
        const UNENDED: &str = "an {{end}} is missing";
        let head = assignment(head)?;
        let (body, stop) = self.nodes()?;
        let otherwise = match stop.ok_or(UNENDED)? {
            Stop::End => Vec::new(),
            Stop::Else("") => match self.nodes()? {
                (nodes, Some(Stop::End)) => nodes,
                (_, Some(Stop::Else(_))) => return Err("a second {{else}} of one block".into()),
                (_, None) => return Err(UNENDED.into()),
            },
            // `else if` shares the `end` of this block.
            Stop::Else(next) => match first_word(next) {
                ("if", head) => vec![Node::Block(self.block(Kind::If, head)?)],
                ("with", head) => vec![Node::Block(self.block(Kind::With, head)?)],
                (word, _) => return Err(format!("{word:?} cannot follow else; only if and with can")),
            },
        };
        Ok(Block { kind, head, body, otherwise })
    }
}

fn kind(word: &str) -> Option<Kind> {
    match word {
        "if" => Some(Kind::If),
        "with" => Some(Kind::With),
        "range" => Some(Kind::Range),
        _ => None,
    }
}

fn first_word(action: &str) -> (&str, &str) {
    let (word, rest) = name(action);
    (word, rest.trim_start())
}

enum Token {
    Operand(Operand),
    Open,
    /// A closing parenthesis, and the fields after it.
    Close(Vec<String>),
    Pipe,
    Comma,
    Becomes {
        is_new: bool,
    },
}

fn assignment(text: &str) -> Why<Assignment> {
    let mut tokens = tokens(text)?;
    let becomes = |token: &Token| matches!(token, Token::Becomes { .. });
    let Some(at) = tokens.iter().position(becomes) else {
        return Ok(Assignment { names: Vec::new(), is_new: false, value: whole_pipeline(tokens)? });
    };
    let value = whole_pipeline(tokens.split_off(at + 1))?;
    let is_new = matches!(tokens.pop(), Some(Token::Becomes { is_new: true }));
    let wrong = || format!("what stands before = in {text:?} is not $NAME, or $NAME, $NAME");
    let mut names = Vec::new();
    for (at, token) in tokens.into_iter().enumerate() {
        match token {
            Token::Operand(Operand { base: Base::Variable(name), fields })
                if at % 2 == 0 && fields.is_empty() =>
            {
                names.push(name);
            }
            Token::Comma if at == 1 => {}
            _ => return Err(wrong()),
        }
    }
    if names.is_empty() { Err(wrong()) } else { Ok(Assignment { names, is_new, value }) }
}

fn whole_pipeline(tokens: Vec<Token>) -> Why<Pipeline> {
    pipeline(&mut tokens.into_iter(), false).map(|(pipeline, _)| pipeline)
}

/// Parses a pipeline up to its end, or to the closing parenthesis, and the fields after that.
fn pipeline(tokens: &mut IntoIter<Token>, is_group: bool) -> Why<(Pipeline, Vec<String>)> {
    let mut commands = Vec::new();
    let mut command = Vec::new();
    let fields = loop {
        match tokens.next() {
            Some(Token::Operand(operand)) => command.push(operand),
            Some(Token::Open) => {
                let (group, fields) = pipeline(tokens, true)?;
                command.push(Operand { base: Base::Group(group), fields });
            }
            Some(Token::Pipe) => commands.push(std::mem::take(&mut command)),
            Some(Token::Close(fields)) if is_group => break fields,
            Some(Token::Close(_)) => return Err("a parenthesis is closed that was not open".into()),
            None if is_group => return Err("a parenthesis is not closed".into()),
            None => break Vec::new(),
            Some(Token::Comma) => return Err("a comma where none is expected".into()),
            Some(Token::Becomes { .. }) => return Err("= where none is expected".into()),
        }
    };
    commands.push(command);
    if commands.iter().any(Vec::is_empty) { Err("a value is missing".into()) } else { Ok((commands, fields)) }
}

fn tokens(text: &str) -> Why<Vec<Token>> {
    let operand = |base, fields| Token::Operand(Operand { base, fields });
    let literal = |value| operand(Base::Literal(value), Vec::new());
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let behind = &rest[first.len_utf8()..];
        let (token, after) = match first {
            '|' => (Token::Pipe, behind),
            ',' => (Token::Comma, behind),
            '=' => (Token::Becomes { is_new: false }, behind),
            ':' if behind.starts_with('=') => (Token::Becomes { is_new: true }, &behind[1..]),
            '(' => (Token::Open, behind),
            ')' => {
                let (fields, after) = fields(behind);
                (Token::Close(fields), after)
            }
            '"' | '`' => {
                let (text, after) = quoted(rest)?;
                (literal(Value::String(text)), after)
            }
            '.' => match fields(rest) {
                (fields, _) if fields.is_empty() => (operand(Base::Dot, fields), behind),
                (fields, after) => (operand(Base::Dot, fields), after),
            },
            '$' => {
                let (name, after) = name(behind);
                let (fields, after) = fields(after);
                (operand(Base::Variable(name.to_owned()), fields), after)
            }
            '0'..='9' | '-' | '+' => {
                let (number, after) = number(rest)?;
                (literal(Value::Number(number)), after)
            }
            _ => match name(rest) {
                ("", _) => return Err(format!("{first:?} is not expected")),
                ("true", after) => (literal(Value::Bool(true)), after),
                ("false", after) => (literal(Value::Bool(false)), after),
                ("nil", after) => (literal(Value::Null), after),
                (name, after) if functions::is_known(name) => {
                    (operand(Base::Function(name.to_owned()), Vec::new()), after)
                }
                (name, _) => {
                    return Err(format!("unknown function {name:?}; known are {}", functions::names()));
                }
            },
        };
        found.push(token);
        rest = after.trim_start();
    }
    Ok(found)
}

/// Splits off a name: letters, digits and `_`.
fn name(text: &str) -> (&str, &str) {
    let is_other = |letter: char| !letter.is_alphanumeric() && letter != '_';
    text.split_at(text.find(is_other).unwrap_or(text.len()))
}

/// Splits off fields such as `.A.B`.
fn fields(mut text: &str) -> (Vec<String>, &str) {
    let mut found = Vec::new();
    while let Some((field, after)) = text.strip_prefix('.').map(name).filter(|(field, _)| !field.is_empty()) {
        found.push(field.to_owned());
        text = after;
    }
    (found, text)
}

fn number(text: &str) -> Why<(Number, &str)> {
    let is_other = |letter: char| !letter.is_alphanumeric() && !"._".contains(letter);
    let sign = usize::from(text.starts_with(['-', '+']));
    let end = text[sign..].find(is_other).map_or(text.len(), |at| at + sign);
    let plain = text[..end].replace('_', "");
    let hex = plain.strip_prefix("0x").and_then(|hex| i64::from_str_radix(hex, 16).ok());
    let whole = hex.or_else(|| plain.parse().ok()).map(Number::from);
    let number = whole.or_else(|| Number::from_f64(plain.parse().ok()?));
    number.map(|number| (number, &text[end..])).ok_or_else(|| format!("{:?} is no number", &text[..end]))
}

/// Splits off a quoted text, without its quotes.
fn quoted(text: &str) -> Why<(String, &str)> {
    const UNCLOSED: &str = "a quotation is not closed";
    if let Some(raw) = text.strip_prefix('`') {
        return raw.split_once('`').map(|(raw, after)| (raw.to_owned(), after)).ok_or(UNCLOSED.into());
    }
    let mut found = String::new();
    let mut letters = text.char_indices().skip(1);
    while let Some((at, letter)) = letters.next() {
        found.push(match letter {
            '"' => return Ok((found, &text[at + 1..])),
            '\\' => match letters.next().ok_or(UNCLOSED)?.1 {
                'n' => '\n',
                't' => '\t',
                'r' => '\r',
                same @ ('"' | '\\' | '\'') => same,
                other => return Err(format!("\\{other} is not known; \\n, \\t, \\r, \\\" and \\\\ are")),
            },
            other => other,
        });
    }
    Err(UNCLOSED.into())
}
