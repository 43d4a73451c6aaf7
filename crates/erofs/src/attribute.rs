//! Extended attributes, as far as an image can hold them.

use types::{Error, Result};

use crate::acl::Acl;
use crate::format::{DIRECTORY, REGULAR, SYMLINK, TYPE_MASK};

/// Most bytes of a value. The field has 16 bits, so this is one byte less than the limit of xattr(7).
const VALUE_LEN_MAX: usize = u16::MAX as usize;
/// Most bytes of a name without its prefix.
const NAME_LEN_MAX: usize = u8::MAX as usize;

/// Prefixes of names, and their numbers in an image (`EROFS_XATTR_INDEX_…`).
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

/// The attribute of an opaque directory, without its value (overlayfs.rst).
pub(crate) const OPAQUE: (u8, &[u8]) = (TRUSTED, b"overlay.opaque");

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Attribute {
    pub(crate) prefix: u8,
    /// Without the prefix.
    pub(crate) name: Vec<u8>,
    pub(crate) value: Vec<u8>,
}

impl Attribute {
    /// `None` if the attribute has no effect on a file of this mode: images do not hold its kind, or Linux does not
    /// allow it on this type of file. `InvalidArgument` if it is too long, or an invalid access control list.
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
            // Setting an empty list removes it (Linux, `posix_acl_from_xattr`).
            ACL_ACCESS | ACL_DEFAULT if value.is_empty() => return Ok(None),
            ACL_ACCESS | ACL_DEFAULT => {
                let mut acl = Acl::parse(&value)
                    .ok_or_else(|| Error::invalid_argument(format!("attribute {name} is not well-formed")))?;
                if acl.is_empty() || prefix == ACL_ACCESS && acl.is_minimal() {
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

    /// Whether it is a label that a security module of the host gave the file, and so no part of the layer.
    pub(crate) fn is_label(&self) -> bool {
        self.prefix == SECURITY && self.name != b"capability"
    }

    /// The attribute after a chmod(2) of the file, which changes access control lists.
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

/// Whether the value is of a version of file capabilities that Linux knows (capabilities(7)). It refuses to set others,
/// and to execute a file that has them.
fn are_capabilities(value: &[u8]) -> bool {
    matches!((value.len(), value.get(3)), (20, Some(2)) | (24, Some(3)))
}
