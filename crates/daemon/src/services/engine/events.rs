//! `events`: Docker's event stream for a client, from a past time, to a future time.

use std::collections::BTreeMap;
use std::time::Duration;

use api::engine::{Actor, Events, Happened};
use engine::{FilterWord, time};
use types::{Error, Result, Timestamp};

use super::history::History;
use super::{Sender, document};

const KNOWN: &[&str] = &["container", "event", "image", "label", "network", "scope", "type", "volume"];

/// Sends events until the client disconnects or `until` is reached.
pub(super) async fn follow(history: &History, wanted: Events, send: &Sender) -> Result<()> {
    let Events { filters, since, until } = wanted;
    let filters = Filters::parse(&filters)?;
    let (since, until) = (time("since", since)?, time("until", until)?);
    if let (Some(since), Some(until)) = (since, until)
        && since > until
    {
        return Err(Error::invalid_argument(format!(
            "--since {since} is after --until {until}: nothing can have happened in between"
        )));
    }
    let Some((past, mut listener)) = history.join(filters).await else { return Ok(()) };
    let is_over = |happened: &Happened| until.is_some_and(|until| happened.time_nano > nanoseconds(until));
    // As in Docker: without `since` and `until` no past events, with `until` alone all of them.
    if since.is_some() || until.is_some() {
        let since = since.map_or(i64::MIN, nanoseconds);
        for happened in past.iter().filter(|happened| happened.time_nano >= since && !is_over(happened)) {
            if send.send(Ok(document(happened))).await.is_err() {
                return Ok(());
            }
        }
    }
    let left = until.map(|until| Timestamp::now().until(until));
    let telling = async {
        while let Some((told, _room)) = listener.next().await {
            if send.send(Ok(told)).await.is_err() {
                return Ok(());
            }
        }
        Err(Error::data_loss(
            "the listener was too slow and lost further events: listen again, then list anew",
        ))
    };
    match left {
        None => telling.await,
        Some(Duration::ZERO) => Ok(()),
        Some(left) => tokio::time::timeout(left, telling).await.unwrap_or(Ok(())),
    }
}

fn nanoseconds(time: Timestamp) -> i64 {
    time.seconds.saturating_mul(1_000_000_000).saturating_add(time.nanos.into())
}

/// Filter values by key.
#[derive(Clone, Default)]
pub(super) struct Filters(BTreeMap<String, Vec<String>>);

impl Filters {
    fn parse(texts: &[String]) -> Result<Filters> {
        let mut filters = Filters::default();
        for text in texts {
            let FilterWord { key, value, .. } = FilterWord::read(text, KNOWN)?;
            filters.0.entry(key.to_owned()).or_default().push(value.to_owned());
        }
        Ok(filters)
    }

    pub(super) fn fit(&self, happened: &Happened) -> bool {
        let Actor { id, attributes } = &happened.actor;
        let is = |key: &str, value: &String| attributes.get(key) == Some(value);
        let is_it = |kind: &str, value: &String| {
            happened.kind == kind && (is("name", value) || id.starts_with(value))
        };
        self.0.iter().all(|(key, values)| {
            let mut values = values.iter();
            match key.as_str() {
                "container" | "network" | "volume" => values.any(|value| is_it(key, value)),
                "event" => values.any(|value| {
                    happened
                        .action
                        .strip_prefix(value.as_str())
                        .is_some_and(|rest| rest.is_empty() || rest.starts_with(": "))
                }),
                "image" => {
                    let named = if happened.kind == "image" { "name" } else { "image" };
                    let name = attributes.get(named).map(String::as_str);
                    values.any(|value| {
                        id == value || name == Some(value) || name.map(without_tag) == Some(value.as_str())
                    })
                }
                "label" => values.all(|value| match value.split_once('=') {
                    Some((label, wanted)) => attributes.get(label).is_some_and(|own| own == wanted),
                    None => attributes.contains_key(value),
                }),
                "scope" => values.any(|value| *value == happened.scope),
                _ => values.any(|value| *value == happened.kind),
            }
        })
    }
}

/// A name without tag and digest, which matches all of them.
fn without_tag(name: &str) -> &str {
    let name = name.split('@').next().unwrap_or(name);
    match name.rsplit_once(':') {
        // The colon belongs to a registry's port, not a tag.
        Some((name, tag)) if !tag.contains('/') => name,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::super::docker_event::tests::exit;
    use super::*;

    #[test]
    fn filters_of_one_key_are_alternatives() {
        let mut happened = exit("c");
        happened.actor.attributes.extend([("name".into(), "web".into()), ("tier".into(), "front".into())]);
        let check = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(ToString::to_string).collect();
            Filters::parse(&texts).unwrap().fit(&happened)
        };
        assert!(check(&[]) && check(&["event=die", "event=start", "container=web", "type=container"]));
        assert!(check(&["scope=local"]) && !check(&["scope=swarm"]));
        assert!(check(&["label=tier", "label=tier=front"]) && !check(&["label=tier=front", "label=nosuch"]));
        assert!(
            !check(&["event=start"]) && !check(&["event=die", "container=other"]) && !check(&["image=web"])
        );
        happened.actor.attributes.insert("image".into(), "host:5000/web:1.2".into());
        for (image, fits) in [("host:5000/web:1.2", true), ("host:5000/web", true), ("host", false)] {
            let filter = Filters::parse(&[format!("image={image}")]).unwrap();
            assert_eq!(filter.fit(&happened), fits, "{image}");
        }
        let unknown = Filters::parse(&["nosuch=1".to_owned()]).map(drop).unwrap_err();
        assert!(unknown.to_string().contains("known are container"), "{unknown}");
    }
}
