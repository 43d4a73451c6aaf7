//! Instructions of a Dockerfile that change how an image runs, as `docker commit --change` takes them.
//!
//! They are applied to the JSON document, which also keeps fields that the engine does not use.

use serde_json::{Map, Value, json};
use types::spec::image::Healthcheck;
use types::{Error, Result};

use crate::times::duration;

/// Instructions that create layers, which `--change` does not support.
const BUILD_ONLY: [&str; 5] = ["ADD", "ARG", "COPY", "FROM", "RUN"];

/// Applies one instruction to the `config` object of an image's config.
pub(crate) fn apply(config: &mut Map<String, Value>, line: &str) -> Result<()> {
    let line = line.trim();
    let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest = rest.trim();
    let name = name.to_ascii_uppercase();
    let wrong = |why: &str| Error::invalid_argument(format!("change {line:?}: {why}"));
    if rest.is_empty() && name != "CMD" && name != "ENTRYPOINT" {
        return Err(wrong("expected an instruction and its arguments, such as \"CMD sh\""));
    }
    match name.as_str() {
        "CMD" => set(config, "Cmd", command(rest, config)),
        "ENTRYPOINT" => {
            let entrypoint = command(rest, config);
            set(config, "Entrypoint", entrypoint);
            // As in a Dockerfile: the arguments were meant for the previous entrypoint.
            config.remove("Cmd");
        }
        "ENV" => {
            for (key, value) in pairs(rest).map_err(|why| wrong(&why))? {
                set_variable(config, &key, &value);
            }
        }
        "LABEL" => {
            for (key, value) in pairs(rest).map_err(|why| wrong(&why))? {
                object(config, "Labels").insert(key, value.into());
            }
        }
        "EXPOSE" => {
            for port in rest.split_whitespace() {
                let (number, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
                let is_known = matches!(protocol, "tcp" | "udp" | "sctp");
                if number.parse::<u16>().is_err() || !is_known {
                    return Err(wrong(&format!("{port:?} is no port such as 80 or 53/udp")));
                }
                object(config, "ExposedPorts").insert(format!("{number}/{protocol}"), json!({}));
            }
        }
        "VOLUME" => {
            let paths = words(rest).unwrap_or_else(|| rest.split_whitespace().map(str::to_owned).collect());
            for path in paths {
                object(config, "Volumes").insert(path, json!({}));
            }
        }
        "USER" => set(config, "User", rest.into()),
        "WORKDIR" => {
            let before = config.get("WorkingDir").and_then(Value::as_str).unwrap_or("/");
            let path = std::path::Path::new(if before.is_empty() { "/" } else { before }).join(rest);
            let path = path.display().to_string();
            set(config, "WorkingDir", path.into());
        }
        "STOPSIGNAL" => set(config, "StopSignal", rest.into()),
        "HEALTHCHECK" => {
            let check = health_check(rest).map_err(|why| wrong(&why))?;
            set(config, "Healthcheck", json!(check));
        }
        "SHELL" => {
            let shell =
                words(rest).ok_or_else(|| wrong("a list such as [\"/bin/sh\", \"-c\"] is expected"))?;
            set(config, "Shell", shell.into());
        }
        "ONBUILD" => {
            let trigger: Value = rest.into();
            match config.get_mut("OnBuild").and_then(Value::as_array_mut) {
                Some(list) => list.push(trigger),
                None => set(config, "OnBuild", json!([trigger])),
            }
        }
        name if BUILD_ONLY.contains(&name) => {
            return Err(wrong(&format!("{name} belongs to a build, not to a commit")));
        }
        _ => return Err(wrong("the instruction is not known")),
    }
    Ok(())
}

/// Sets a variable, at its previous position if it exists.
pub(crate) fn set_variable(config: &mut Map<String, Value>, key: &str, value: &str) {
    let entry = Value::from(format!("{key}={value}"));
    let list = config.entry("Env").or_insert_with(|| json!([]));
    if !list.is_array() {
        *list = json!([]);
    }
    let list = list.as_array_mut().expect("made one above");
    let same = |have: &&mut Value| {
        have.as_str().is_some_and(|have| have.split_once('=').map_or(have, |(key, _)| key) == key)
    };
    match list.iter_mut().find(same) {
        Some(have) => *have = entry,
        None => list.push(entry),
    }
}

/// The object under a key, created if there is none.
pub(crate) fn object<'a>(config: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let value = config.entry(key).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("made one above")
}

fn set(config: &mut Map<String, Value>, key: &str, value: Value) {
    config.insert(key.to_owned(), value);
}

/// The words of a JSON list, or the line as an argument of the image's shell.
fn command(rest: &str, config: &Map<String, Value>) -> Value {
    if rest.is_empty() {
        return json!([]);
    }
    if let Some(words) = words(rest) {
        return words.into();
    }
    let shell = config.get("Shell").and_then(Value::as_array).filter(|shell| !shell.is_empty());
    let mut words = shell.cloned().unwrap_or_else(|| vec!["/bin/sh".into(), "-c".into()]);
    words.push(rest.into());
    words.into()
}

/// `NONE`, or `[--interval=30s …] CMD` and the command.
fn health_check(rest: &str) -> Result<Healthcheck, String> {
    let (mut check, mut rest) = (Healthcheck::default(), rest);
    loop {
        let (word, after) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        let after = after.trim();
        let Some(flag) = word.strip_prefix("--") else {
            check.test = match (word.to_ascii_uppercase().as_str(), words(after)) {
                ("NONE", _) if after.is_empty() && check == Healthcheck::default() => vec!["NONE".into()],
                ("CMD", Some(words)) if !words.is_empty() => {
                    ["CMD".to_owned()].into_iter().chain(words).collect()
                }
                ("CMD", None) if !after.is_empty() => vec!["CMD-SHELL".into(), after.into()],
                _ => return Err("expected NONE, or CMD and a command".into()),
            };
            return Ok(check);
        };
        let (name, value) = flag.split_once('=').ok_or_else(|| format!("--{flag} has no value"))?;
        if name == "retries" {
            check.retries = value
                .parse()
                .ok()
                .filter(|count| *count > 0)
                .ok_or_else(|| format!("--retries={value} is no number above zero"))?;
        } else {
            let field = match name {
                "interval" => &mut check.interval,
                "timeout" => &mut check.timeout,
                "start-period" => &mut check.start_period,
                "start-interval" => &mut check.start_interval,
                _ => return Err(format!("--{name} is not known")),
            };
            let time = duration(value).and_then(|time| i64::try_from(time).ok());
            // Docker's minimum.
            let is_enough = |time: &i64| *time == 0 || *time >= 1_000_000;
            *field = time
                .filter(is_enough)
                .ok_or_else(|| format!("--{name}={value} is no duration such as 30s, of 1ms at least"))?;
        }
        rest = after;
    }
}

fn words(rest: &str) -> Option<Vec<String>> {
    if rest.starts_with('[') { serde_json::from_str(rest).ok() } else { None }
}

/// `KEY=VALUE KEY="VALUE WITH BLANKS"`, or the old form `KEY VALUE`.
fn pairs(rest: &str) -> Result<Vec<(String, String)>, String> {
    let (first, after) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    if !first.contains('=') {
        let value = after.trim();
        let missing = || format!("{first:?} has no value");
        return if value.is_empty() { Err(missing()) } else { Ok(vec![(first.into(), value.into())]) };
    }
    let mut pairs = Vec::new();
    for word in split_words(rest)? {
        let (key, value) = word.split_once('=').ok_or_else(|| format!("{word:?} has no value"))?;
        if key.is_empty() {
            return Err(format!("{word:?} has no name"));
        }
        pairs.push((key.to_owned(), value.to_owned()));
    }
    Ok(pairs)
}

/// Splits at blanks outside of quotes; a backslash quotes the next character.
fn split_words(text: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        let word_so_far = |word: &mut Option<String>| word.get_or_insert_default().len();
        match (character, quote) {
            ('\\', Some('"') | None) => {
                let next = characters.next().ok_or("a backslash protects nothing")?;
                word.get_or_insert_default().push(next);
            }
            ('"' | '\'', None) => {
                word_so_far(&mut word);
                quote = Some(character);
            }
            (_, Some(open)) if character == open => quote = None,
            (_, None) if character.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(character),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed".into());
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(before: Value, line: &str, after: Value) {
        let mut config = before.as_object().unwrap().clone();
        apply(&mut config, line).unwrap();
        assert_eq!(Value::Object(config), after, "{line}");
    }

    #[test]
    fn each_instruction_changes_its_field() {
        check(json!({}), "CMD [\"a\", \"b c\"]", json!({"Cmd": ["a", "b c"]}));
        check(json!({"Cmd": ["x"]}), "cmd echo $HOME", json!({"Cmd": ["/bin/sh", "-c", "echo $HOME"]}));
        check(
            json!({"Shell": ["bash", "-c"]}),
            "CMD x",
            json!({"Shell": ["bash", "-c"], "Cmd": ["bash", "-c", "x"]}),
        );
        check(json!({"Cmd": ["x"]}), "ENTRYPOINT [\"e\"]", json!({"Entrypoint": ["e"]}));
        check(
            json!({"Env": ["A=1", "B=2"]}),
            "ENV A=3 C=\"x y\" D=a\\ b",
            json!({"Env": ["A=3", "B=2", "C=x y", "D=a b"]}),
        );
        check(json!({"Env": null}), "ENV A one two", json!({"Env": ["A=one two"]}));
        check(
            json!({"Labels": {"a": "1"}}),
            "LABEL b='2 3' c=",
            json!({"Labels": {"a": "1", "b": "2 3", "c": ""}}),
        );
        check(json!({}), "EXPOSE 80 53/udp", json!({"ExposedPorts": {"80/tcp": {}, "53/udp": {}}}));
        check(json!({}), "VOLUME [\"/a b\"]", json!({"Volumes": {"/a b": {}}}));
        check(json!({}), "VOLUME /a /b", json!({"Volumes": {"/a": {}, "/b": {}}}));
        check(json!({}), "USER me:us", json!({"User": "me:us"}));
        check(json!({"WorkingDir": "/srv"}), "WORKDIR app", json!({"WorkingDir": "/srv/app"}));
        check(json!({"WorkingDir": "/srv"}), "WORKDIR /app", json!({"WorkingDir": "/app"}));
        check(json!({}), "STOPSIGNAL SIGINT", json!({"StopSignal": "SIGINT"}));
        let test = |config: &Value| config["Healthcheck"].clone();
        let of = |line: &str| {
            let mut config = Map::new();
            apply(&mut config, line).unwrap();
            test(&config.into())
        };
        assert_eq!(of("HEALTHCHECK NONE"), json!({"Test": ["NONE"]}));
        assert_eq!(of("healthcheck cmd a || b"), json!({"Test": ["CMD-SHELL", "a || b"]}));
        assert_eq!(
            of("HEALTHCHECK --interval=1m30s --retries=2  --start-period=0s CMD [\"a\", \"b c\"]"),
            json!({"Test": ["CMD", "a", "b c"], "Interval": 90_000_000_000_u64, "Retries": 2})
        );
        check(json!({"OnBuild": ["RUN a"]}), "ONBUILD RUN b", json!({"OnBuild": ["RUN a", "RUN b"]}));
    }

    #[test]
    fn what_is_no_instruction_is_refused_by_name() {
        for line in [
            "",
            "CMDX a",
            "RUN make",
            "FROM x",
            "EXPOSE http",
            "EXPOSE 80/icmp",
            "ENV A",
            "ENV =x",
            "USER",
            "LABEL a=\"b",
            "SHELL sh",
            "HEALTHCHECK sh",
            "HEALTHCHECK CMD",
            "HEALTHCHECK CMD []",
            "HEALTHCHECK NONE sh",
            "HEALTHCHECK --interval=1s NONE",
            "HEALTHCHECK --interval=-1s CMD sh",
            "HEALTHCHECK --interval=1us CMD sh",
            "HEALTHCHECK --retries=0 CMD sh",
            "HEALTHCHECK --odd=1s CMD sh",
        ] {
            let error = apply(&mut Map::new(), line).unwrap_err();
            assert!(error.message().starts_with("change "), "{error:?}");
        }
    }
}
