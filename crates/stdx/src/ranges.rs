//! Lists of small numbers, as the kernel writes and reads those of processors and memory nodes (cpuset(7), "List
//! format").

use std::ops::RangeInclusive;

/// The ranges of a list such as `0-2,5`, in its order; an empty text has none. `None` if it is malformed, or if a range
/// ends before it begins.
pub fn ranges(list: &str) -> Option<Vec<RangeInclusive<u32>>> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (first <= last).then_some(first..=last)
    };
    match list.trim() {
        "" => Some(Vec::new()),
        list => list.split(',').map(range).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_have_numbers_and_ranges() {
        let check = |list: &str, expected: Option<&[u32]>| {
            let found: Option<Vec<u32>> = ranges(list).map(|ranges| ranges.into_iter().flatten().collect());
            assert_eq!(found.as_deref(), expected, "{list:?}");
        };
        check("0-2,5,7-8\n", Some(&[0, 1, 2, 5, 7, 8]));
        check("0, 3 - 4", Some(&[0, 3, 4]));
        check("7,0", Some(&[7, 0]));
        check("\n", Some(&[]));
        check("", Some(&[]));
        for wrong in ["a", "-1", "1-", "2-1", "1,", ",", "0-3:1/2", "4294967296"] {
            check(wrong, None);
        }
        // A huge range costs no memory.
        assert_eq!(ranges("0-4294967295"), Some(vec![0..=u32::MAX]));
    }
}
