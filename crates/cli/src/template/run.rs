//! Executes a template with a document.
//!
//! Headings are made by the same walk with no document: there a field of nothing is its heading, and further fields and
//! functions keep it.

use serde_json::{Map, Value};

use super::parse::{Assignment, Base, Block, Kind, Node, Operand, Pipeline};
use super::value::{is_true, show};
use super::{Why, functions};

pub(super) fn fill(nodes: &[Node], data: &Value) -> Why<String> {
    Run::new(data, None).all(nodes, data)
}

pub(super) fn headings(nodes: &[Node], of: &dyn Fn(&str) -> String) -> Why<String> {
    Run::new(&Value::Null, Some(of)).all(nodes, &Value::Null)
}

struct Run<'a> {
    /// The variables in scope, the innermost last. The first is the document.
    variables: Vec<(String, Value)>,
    heading: Option<&'a dyn Fn(&str) -> String>,
    out: String,
}

#[derive(PartialEq)]
enum Flow {
    On,
    Break,
    Continue,
}

impl<'a> Run<'a> {
    fn new(data: &Value, heading: Option<&'a dyn Fn(&str) -> String>) -> Run<'a> {
        Run { variables: vec![(String::new(), data.clone())], heading, out: String::new() }
    }

    fn all(mut self, nodes: &[Node], data: &Value) -> Why<String> {
        match self.nodes(nodes, data)? {
            Flow::On => Ok(self.out),
            Flow::Break | Flow::Continue => Err("break and continue are allowed only inside range".into()),
        }
    }

    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Why<Flow> {
        for node in nodes {
            match node {
                Node::Text(text) => self.out.push_str(text),
                Node::Action(action) => {
                    let value = self.pipeline(&action.value, dot)?;
                    if action.names.is_empty() {
                        self.out.push_str(&show(&value));
                    }
                    self.assign(action, value)?;
                }
                Node::Block(block) => {
                    let known = self.variables.len();
                    let flow = self.block(block, dot)?;
                    self.variables.truncate(known);
                    if flow != Flow::On {
                        return Ok(flow);
                    }
                }
                Node::Break => return Ok(Flow::Break),
                Node::Continue => return Ok(Flow::Continue),
            }
        }
        Ok(Flow::On)
    }

    fn block(&mut self, block: &Block, dot: &Value) -> Why<Flow> {
        let value = self.pipeline(&block.head.value, dot)?;
        let holds = is_true(&value);
        match block.kind {
            Kind::Range => return self.range(block, value, dot),
            Kind::If | Kind::With => self.assign(&block.head, value.clone())?,
        }
        match block.kind {
            _ if !holds => self.nodes(&block.otherwise, dot),
            Kind::With => self.nodes(&block.body, &value),
            Kind::If | Kind::Range => self.nodes(&block.body, dot),
        }
    }

    fn range(&mut self, block: &Block, over: Value, dot: &Value) -> Why<Flow> {
        let entries: Vec<(Value, Value)> = match over {
            Value::Array(items) => {
                items.into_iter().enumerate().map(|(at, item)| (at.into(), item)).collect()
            }
            Value::Object(map) => map.into_iter().map(|(key, item)| (key.into(), item)).collect(),
            heading if self.heading.is_some() => vec![(Value::Null, heading)],
            empty if !is_true(&empty) => Vec::new(),
            other => return Err(format!("range goes over lists and maps, and not over {}", show(&other))),
        };
        if entries.is_empty() {
            return self.nodes(&block.otherwise, dot);
        }
        let known = self.variables.len();
        for (key, item) in entries {
            match &block.head.names[..] {
                [] => {}
                [name] => self.set(name, block.head.is_new, item.clone())?,
                [first, second, ..] => {
                    self.set(first, block.head.is_new, key)?;
                    self.set(second, block.head.is_new, item.clone())?;
                }
            }
            let flow = self.nodes(&block.body, &item)?;
            self.variables.truncate(known);
            if flow == Flow::Break {
                break;
            }
        }
        Ok(Flow::On)
    }

    fn assign(&mut self, to: &Assignment, value: Value) -> Why<()> {
        match &to.names[..] {
            [] => Ok(()),
            [name] => self.set(name, to.is_new, value),
            _ => Err("only range assigns two variables".into()),
        }
    }

    fn set(&mut self, name: &str, is_new: bool, value: Value) -> Why<()> {
        if is_new {
            self.variables.push((name.to_owned(), value));
            return Ok(());
        }
        let known = self.variables.iter_mut().rev().find(|(known, _)| known == name);
        known.ok_or_else(|| unknown(name))?.1 = value;
        Ok(())
    }

    fn pipeline(&self, commands: &Pipeline, dot: &Value) -> Why<Value> {
        let mut piped = None;
        for command in commands {
            piped = Some(self.command(command, piped, dot)?);
        }
        Ok(piped.unwrap_or_default())
    }

    fn command(&self, operands: &[Operand], piped: Option<Value>, dot: &Value) -> Why<Value> {
        let Some((first, rest)) = operands.split_first() else { return Ok(Value::Null) };
        let mut arguments = rest.iter().map(|operand| self.operand(operand, dot)).chain(piped.map(Ok));
        let Base::Function(name) = &first.base else {
            let value = self.operand(first, dot)?;
            return match arguments.next() {
                None => Ok(value),
                Some(argument) => self.entry(&value, &argument?),
            };
        };
        if let "and" | "or" = name.as_str() {
            return first_that_decides(name == "or", &mut arguments);
        }
        let arguments = arguments.collect::<Why<Vec<Value>>>()?;
        match arguments.first() {
            Some(heading) if self.heading.is_some() && functions::keeps_headings(name) => Ok(heading.clone()),
            _ => functions::call(name, &arguments),
        }
    }

    /// Docker's method `.Label "KEY"`: the entry of a map, or nothing if it does not exist.
    fn entry(&self, of: &Value, key: &Value) -> Why<Value> {
        match of {
            Value::Object(map) => Ok(map.get(&show(key)).cloned().unwrap_or_default()),
            // As with Docker, the heading is the last part of the key.
            Value::String(_) if self.heading.is_some() => {
                let key = show(key);
                Ok(key.rsplit('.').next().unwrap_or_default().replace(['-', '_'], " ").into())
            }
            other => {
                Err(format!("{:?} takes nothing behind it, and {:?} stands there", show(other), show(key)))
            }
        }
    }

    fn operand(&self, operand: &Operand, dot: &Value) -> Why<Value> {
        let mut value = match &operand.base {
            Base::Dot => dot.clone(),
            Base::Variable(name) => {
                let known = self.variables.iter().rev().find(|(known, _)| known == name);
                known.ok_or_else(|| unknown(name))?.1.clone()
            }
            Base::Function(name) => functions::call(name, &[])?,
            Base::Literal(value) => value.clone(),
            Base::Group(pipeline) => self.pipeline(pipeline, dot)?,
        };
        let mut before = None;
        for field in &operand.fields {
            value = self.field(value, field, before.is_some_and(is_open))?;
            before = Some(field.as_str());
        }
        Ok(value)
    }

    /// A field's value. If `is_open`, a field that does not exist is nothing.
    fn field(&self, of: Value, name: &str, is_open: bool) -> Why<Value> {
        match (of, self.heading) {
            (Value::Null, Some(heading)) => Ok(heading(name).into()),
            (heading, Some(_)) => Ok(heading),
            (Value::Object(mut map), None) => {
                let found = map.remove(name).or_else(|| map.remove(&as_in_go(name, &map)?));
                let found = found.or(is_open.then_some(Value::Null));
                found.ok_or_else(|| {
                    let known: Vec<&str> = map.keys().map(String::as_str).collect();
                    format!("there is no field {name}; there are {}", known.join(", "))
                })
            }
            (Value::Null, None) if is_open => Ok(Value::Null),
            (Value::Null, None) => Err(format!("the value is missing, and has no field {name}")),
            (other, None) => Err(format!("{:?} has no field {name}", show(&other))),
        }
    }
}

/// Whether the names in a field are user data, such as labels, so that a name that does not exist is no mistake.
fn is_open(field: &str) -> bool {
    const OPEN: [&str; 7] =
        ["Annotations", "Attributes", "Labels", "Networks", "Options", "Ports", "Sysctls"];
    OPEN.iter().any(|open| field.eq_ignore_ascii_case(open))
}

/// The field that is equal except for upper and lower case, if there is exactly one: Docker's users write Go's names,
/// such as `ID`, `TimeNano` or `CPUShares`, and documents have JSON's.
fn as_in_go(name: &str, map: &Map<String, Value>) -> Option<String> {
    let mut same = map.keys().filter(|field| field.eq_ignore_ascii_case(name));
    same.next().filter(|_| same.next().is_none()).cloned()
}

/// The first argument that is true for `or`, or false for `and`; otherwise the last. Arguments after it are not
/// evaluated.
fn first_that_decides(wanted: bool, arguments: &mut dyn Iterator<Item = Why<Value>>) -> Why<Value> {
    let mut last = Value::Null;
    for argument in arguments {
        last = argument?;
        if is_true(&last) == wanted {
            break;
        }
    }
    Ok(last)
}

fn unknown(variable: &str) -> String {
    format!("there is no variable ${variable}")
}
