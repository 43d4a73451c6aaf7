//! Placeholders in a mount for values that are known only once the mounts before it are performed.
//!
//! | placeholder | stands for |
//! |---|---|
//! | `{{ source N }}`, `{{ target N }}` | that field of mount N, counted from 0 |
//! | `{{ mount N }}` | the mount point of mount N |
//! | `{{ overlay A B }}` | the mount points of mounts A to B, joined by colons, for `lowerdir=`; B may be less than A |
//!
//! In containerd these are templates of Go's `text/template`, of which mounts use only these expressions. Any other is
//! refused.

use metadata::ActiveMount;
use types::{Error, Mount, Result};

/// Fills in the placeholders in a mount's source, target and options. `InvalidArgument` if one is malformed.
pub(crate) fn fill_mount(mount: Mount, before: &[ActiveMount]) -> Result<Mount> {
    Ok(Mount {
        source: fill(&mount.source, before)?,
        target: fill(&mount.target, before)?,
        options: mount.options.iter().map(|option| fill(option, before)).collect::<Result<_>>()?,
        kind: mount.kind,
    })
}

fn fill(text: &str, before: &[ActiveMount]) -> Result<String> {
    let refused = |why: &str| Error::invalid_argument(format!("fill in {text:?}: {why}"));
    let mut filled = String::new();
    let mut rest = text;
    while let Some((plain, tail)) = rest.split_once("{{") {
        let (expression, tail) = tail.split_once("}}").ok_or_else(|| refused("a \"{{\" without \"}}\""))?;
        filled.push_str(plain);
        filled.push_str(&value(expression, before).map_err(|why| refused(&why))?);
        rest = tail;
    }
    filled.push_str(rest);
    Ok(filled)
}

fn value(expression: &str, before: &[ActiveMount]) -> Result<String, String> {
    let words: Vec<&str> = expression.split_ascii_whitespace().collect();
    let find = |number: &str| {
        let index: i64 = number.parse().map_err(|_| format!("{number:?} is no number"))?;
        let found = usize::try_from(index).ok().and_then(|index| Some((index, before.get(index)?)));
        found.ok_or_else(|| {
            format!("index out of bounds: {index}, there are {} mounts before it", before.len())
        })
    };
    match words[..] {
        ["source", number] => Ok(find(number)?.1.mount.source.clone()),
        ["target", number] => Ok(find(number)?.1.mount.target.clone()),
        ["mount", number] => Ok(find(number)?.1.point.clone()),
        ["overlay", start, end] => {
            let ((start, _), (end, _)) = (find(start)?, find(end)?);
            let mut points: Vec<&str> =
                before[start.min(end)..=start.max(end)].iter().map(|mount| mount.point.as_str()).collect();
            if start > end {
                points.reverse();
            }
            Ok(points.join(":"))
        }
        _ => Err(format!(
            "{:?} is not one of \"source N\", \"target N\", \"mount N\" and \"overlay A B\"",
            expression.trim()
        )),
    }
}

#[cfg(test)]
mod tests {
    use types::{ErrorKind, Timestamp};

    use super::*;

    fn check(text: &str, expected: Option<&str>) {
        let before: Vec<ActiveMount> = (0..3)
            .map(|index| ActiveMount {
                mount: Mount {
                    source: format!("/s{index}"),
                    target: format!("t{index}"),
                    ..Mount::default()
                },
                point: format!("/m/{index}"),
                mounted: Timestamp::default(),
            })
            .collect();
        match (fill(text, &before), expected) {
            (Ok(found), Some(expected)) => assert_eq!(found, expected, "{text}"),
            (Err(error), None) => assert!(error.is(ErrorKind::InvalidArgument), "{error:?}"),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn placeholders_stand_for_mounts_before() {
        check("plain }} text", Some("plain }} text"));
        check("{{ source 0 }}{{target 1}}", Some("/s0t1"));
        check("upperdir={{ mount 2 }}/upper", Some("upperdir=/m/2/upper"));
        check("lowerdir={{ overlay 0 2 }}", Some("lowerdir=/m/0:/m/1:/m/2"));
        check("lowerdir={{ overlay 2 1 }}", Some("lowerdir=/m/2:/m/1"));
        check("lowerdir={{ overlay 1 1 }}", Some("lowerdir=/m/1"));
    }

    #[test]
    fn what_stands_for_nothing_is_refused() {
        for text in [
            "{{ mount 3 }}",
            "{{ mount -1 }}",
            "{{ mount x }}",
            "{{ mount }}",
            "{{ overlay 0 3 }}",
            "{{ overlay 0 }}",
            "{{ printf \"%s\" 1 }}",
            "{{ mount 0",
            "{{}}",
        ] {
            check(text, None);
        }
    }
}
