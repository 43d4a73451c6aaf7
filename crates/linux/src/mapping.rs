//! Memory mappings of a process (proc_pid_maps(5), proc_pid_smaps(5)).

use std::ops::Range;

/// A line of `/proc/PID/maps`, which also begins each block of `smaps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping<'a> {
    pub addresses: Range<u64>,
    /// Such as `r-xp`.
    pub rights: &'a str,
    /// Offset in the file.
    pub offset: u64,
    /// The path, a name of the kernel's such as `[vdso]`, or empty.
    pub file: &'a str,
}

impl<'a> Mapping<'a> {
    /// `None` for any other line.
    pub fn of_line(line: &'a str) -> Option<Mapping<'a>> {
        let number = |text| u64::from_str_radix(text, 16).ok();
        let mut words = line.splitn(6, ' ');
        let (start, end) = words.next()?.split_once('-')?;
        let (addresses, rights) = (number(start)?..number(end)?, words.next()?);
        let offset = number(words.next()?)?;
        // Behind the device and the inode; it may contain spaces.
        let file = words.nth(2).unwrap_or_default().trim();
        Some(Mapping { addresses, rights, offset, file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_of_mappings_are_parsed() {
        let check = |line, addresses, rights, offset, file| {
            let expected = Mapping { addresses, rights, offset, file };
            assert_eq!(Mapping::of_line(line), Some(expected), "{line}");
        };
        let program = "401000-500000 r-xp 00001000 fe:00 77                 /usr/bin/a program";
        check(program, 0x40_1000..0x50_0000, "r-xp", 0x1000, "/usr/bin/a program");
        check("7ff000-800000 rw-p 00000000 00:00 0 ", 0x7f_f000..0x80_0000, "rw-p", 0, "");
        check(
            "900000-901000 r-xp 00000000 00:00 0          [vdso]",
            0x90_0000..0x90_1000,
            "r-xp",
            0,
            "[vdso]",
        );
        for other in ["Rss:                  40 kB", "VmFlags: rd mr mw me", "", "0-1", "0-x r-xp 0 0:0 0 f"]
        {
            assert_eq!(Mapping::of_line(other), None, "{other:?}");
        }
    }

    #[test]
    fn our_own_code_is_where_a_function_of_ours_is() {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let function = our_own_code_is_where_a_function_of_ours_is as fn() as usize as u64;
        let found = maps.lines().map(|line| Mapping::of_line(line).unwrap());
        let program = std::env::current_exe().unwrap();
        let holds: Vec<_> = found.filter(|mapping| mapping.addresses.contains(&function)).collect();
        assert_eq!(holds.len(), 1, "{maps}");
        assert!(holds[0].rights.contains('x') && program == std::path::Path::new(holds[0].file), "{holds:?}");
    }
}
