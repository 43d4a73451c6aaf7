//! Access control lists as extended attributes (`linux/posix_acl_xattr.h`): a version, then entries of tag, permissions
//! and id. They are validated as Linux does on setxattr(2) (`posix_acl_valid`), since it does not when it reads an
//! image.

const VERSION: u32 = 2;
const HEADER_LEN: usize = 4;
const ENTRY_LEN: usize = 8;
const NO_ID: u32 = u32::MAX;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

#[derive(Clone, Copy)]
struct Entry {
    tag: u16,
    permissions: u16,
    id: u32,
}

pub(crate) struct Acl(Vec<Entry>);

impl Acl {
    /// `None` if the list is invalid.
    pub(crate) fn parse(value: &[u8]) -> Option<Acl> {
        let (version, entries) = value.split_first_chunk::<HEADER_LEN>()?;
        if u32::from_le_bytes(*version) != VERSION || entries.len() % ENTRY_LEN != 0 {
            return None;
        }
        let entries = entries.chunks_exact(ENTRY_LEN).map(|entry| Entry {
            tag: u16::from_le_bytes([entry[0], entry[1]]),
            permissions: u16::from_le_bytes([entry[2], entry[3]]),
            id: u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]),
        });
        let acl = Acl(entries.collect());
        acl.is_valid().then_some(acl)
    }

    /// Whether the list says nothing beyond the permissions in the mode.
    pub(crate) fn is_minimal(&self) -> bool {
        self.0.iter().all(|entry| matches!(entry.tag, USER_OBJ | GROUP_OBJ | OTHER))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sets the permissions of a mode, as chmod(2) does.
    pub(crate) fn set_mode(&mut self, mode: u16) {
        let has_mask = self.0.iter().any(|entry| entry.tag == MASK);
        for entry in &mut self.0 {
            match entry.tag {
                USER_OBJ => entry.permissions = mode >> 6 & 7,
                GROUP_OBJ if !has_mask => entry.permissions = mode >> 3 & 7,
                MASK => entry.permissions = mode >> 3 & 7,
                OTHER => entry.permissions = mode & 7,
                _ => {}
            }
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for entry in &self.0 {
            bytes.extend_from_slice(&entry.tag.to_le_bytes());
            bytes.extend_from_slice(&entry.permissions.to_le_bytes());
            bytes.extend_from_slice(&entry.id.to_le_bytes());
        }
        bytes
    }

    /// Whether the entries are owner, named users, group, named groups, mask and others, in this order. A mask is
    /// required if there are named entries.
    fn is_valid(&self) -> bool {
        let rank =
            |tag| [USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER].iter().position(|known| *known == tag);
        let ranks: Option<Vec<usize>> = self.0.iter().map(|entry| rank(entry.tag)).collect();
        let Some(ranks) = ranks else { return false };
        let count = |tag| self.0.iter().filter(|entry| entry.tag == tag).count();
        let has_named = count(USER) + count(GROUP) > 0;
        self.0.is_empty()
            || ranks.is_sorted()
                && self.0.iter().all(|entry| {
                    entry.permissions <= 7 && (!matches!(entry.tag, USER | GROUP) || entry.id != NO_ID)
                })
                && [USER_OBJ, GROUP_OBJ, OTHER].into_iter().all(|tag| count(tag) == 1)
                && (count(MASK) == 1 || count(MASK) == 0 && !has_named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let entries = entries.iter().map(|(tag, permissions, id)| Entry {
            tag: *tag,
            permissions: *permissions,
            id: *id,
        });
        Acl(entries.collect()).encode()
    }

    #[test]
    fn access_control_lists_are_validated_as_the_kernel_does() {
        let named = [(1, 7, NO_ID), (2, 6, 1000), (4, 5, NO_ID), (16, 7, NO_ID), (32, 5, NO_ID)];
        assert!(Acl::parse(&acl(&named)).is_some());
        assert!(Acl::parse(&acl(&named[..4])).is_none(), "no others");
        assert!(
            Acl::parse(&acl(&[named[0], named[1], named[2], named[4]])).is_none(),
            "named without a mask"
        );
        assert!(Acl::parse(&acl(&[named[2], named[0], named[4]])).is_none(), "out of order");
        assert!(Acl::parse(&acl(&[(1, 8, NO_ID), named[2], named[4]])).is_none(), "too much permitted");
        assert!(Acl::parse(&acl(&named)[..20]).is_none(), "cut off");
        assert!(Acl::parse(b"").is_none() && Acl::parse(&[1, 0, 0, 0]).is_none());
        let plain = Acl::parse(&acl(&[named[0], named[2], named[4]])).unwrap();
        assert!(plain.is_minimal() && !plain.is_empty());
    }

    #[test]
    fn chmod_sets_the_mask_of_an_access_control_list() {
        let mut list =
            Acl::parse(&acl(&[(1, 7, NO_ID), (2, 6, 5), (4, 5, NO_ID), (16, 7, NO_ID), (32, 5, NO_ID)]))
                .unwrap();
        list.set_mode(0o640);
        let expected = acl(&[(1, 6, NO_ID), (2, 6, 5), (4, 5, NO_ID), (16, 4, NO_ID), (32, 0, NO_ID)]);
        assert_eq!(list.encode(), expected);
    }
}
