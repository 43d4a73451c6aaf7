//! Extended attributes: which an image can hold.

use types::{Error, Result};

use crate::acl::Acl;
use crate::format::{DIRECTORY, REGULAR, SYMLINK, TYPE_MASK};

/// Bytes of a value. The field has 16 bits, so one byte less than Linux allows elsewhere.
const VALUE_LEN_MAX: usize = u16::MAX as usize;
const NAME_LEN_MAX: usize = u8::MAX as usize;

/// Beginnings of names, and the numbers that stand for them in an image.
const PREFIXES: [(&str, u8); 5] = [
    ("system.posix_acl_access", ACL_ACCESS),
    ("system.posix_acl_default", ACL_DEFAULT),
    ("user.", USER),
    ("trusted.", TRUSTED),
    ("security.", SECURITY),
];
const USER: u8 = 1;
const ACL_ACCESS: u8 = 2;
const ACL_DEFAULT: u8 = 3;
const TRUSTED: u8 = 4;
const SECURITY: u8 = 6;

/// How overlayfs is told that a directory hides those below it.
pub(crate) const OPAQUE: (u8, &[u8]) = (TRUSTED, b"overlay.opaque");

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Attribute {
    pub(crate) prefix: u8,
    /// Without the prefix.
    pub(crate) name: Vec<u8>,
    pub(crate) value: Vec<u8>,
}

impl Attribute {
    /// None if such an attribute would have no effect on a file of this mode: of a kind that no image holds,
    /// or that Linux does not let a file of this type have.
    pub(crate) fn new(name: &str, value: &[u8], mode: u16) -> Result<Option<Attribute>> {
        let Some((prefix, rest)) = PREFIXES
            .iter()
            .find_map(|(prefix, number)| name.strip_prefix(prefix).map(|rest| (*number, rest.as_bytes())))
        else {
            return Ok(None);
        };
        if rest.len() > NAME_LEN_MAX || value.len() > VALUE_LEN_MAX {
            return Err(Error::invalid_argument(format!("attribute {name} is too long")));
        }
        let kind = mode & TYPE_MASK;
        let whole_name = matches!(prefix, ACL_ACCESS | ACL_DEFAULT);
        if whole_name != rest.is_empty() {
            return Ok(None);
        }
        let mut value = value.to_vec();
        match prefix {
            USER if kind != REGULAR && kind != DIRECTORY => return Ok(None),
            ACL_ACCESS | ACL_DEFAULT if kind == SYMLINK => return Ok(None),
            ACL_DEFAULT if kind != DIRECTORY => return Ok(None),
            // Setting nothing as a list takes away the list (acl(5), posix_acl_from_xattr).
            ACL_ACCESS | ACL_DEFAULT if value.is_empty() => return Ok(None),
            ACL_ACCESS | ACL_DEFAULT => {
                let mut acl = Acl::parse(&value)
                    .ok_or_else(|| Error::invalid_argument(format!("attribute {name} is not well-formed")))?;
                if acl.is_empty() || prefix == ACL_ACCESS && acl.says_nothing() {
                    return Ok(None);
                }
                if prefix == ACL_ACCESS {
                    acl.set_mode(mode);
                }
                value = acl.encode();
            }
            SECURITY if rest == b"capability" && !are_capabilities(&value) => return Ok(None),
            _ => {}
        }
        Ok(Some(Attribute { prefix, name: rest.to_vec(), value }))
    }

    /// Whether it is what a host notes about a file, and no part of the file.
    pub(crate) fn is_label(&self) -> bool {
        self.prefix == SECURITY && self.name != b"capability"
    }

    /// As it is after chmod(2).
    pub(crate) fn with_mode(&self, mode: u16) -> Attribute {
        let mut attribute = self.clone();
        if self.prefix == ACL_ACCESS
            && let Some(mut acl) = Acl::parse(&self.value)
        {
            acl.set_mode(mode);
            attribute.value = acl.encode();
        }
        attribute
    }
}

/// Linux refuses to run a file whose capabilities it does not understand, and to set such ones.
fn are_capabilities(value: &[u8]) -> bool {
    matches!((value.len(), value.get(3)), (20, Some(2)) | (24, Some(3)))
}
