//! Suggestions for misspelt words.

/// The known word with the smallest edit distance; none if it is too far off to be what was meant.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let (distance, key) = known.into_iter().map(|key| (distance(word, key), key)).min()?;
    (distance <= 1 + key.len() / 3).then_some(key)
}

/// The edit distance: insertions, deletions, replacements and swaps of neighbours.
fn distance(from: &str, to: &str) -> usize {
    let (from, to) = (from.as_bytes(), to.as_bytes());
    let mut rows: Vec<Vec<usize>> = vec![(0..=to.len()).collect()];
    for (i, a) in from.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in to.iter().enumerate() {
            let mut best = (rows[i][j] + usize::from(a != b)).min(rows[i][j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *a == to[j - 1] && from[i - 1] == *b {
                best = best.min(rows[i - 1][j - 1] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[from.len()][to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_found_and_far_ones_are_not_offered() {
        for (word, meant) in [
            ("adress", Some("address")),
            ("addrses", Some("address")),
            ("udi", Some("uid")),
            ("colour", None),
        ] {
            assert_eq!(nearest(word, ["address", "uid", "gid"]), meant, "{word}");
        }
    }
}
