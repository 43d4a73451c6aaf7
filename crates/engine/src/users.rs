//! Resolves users and groups by the `/etc/passwd` and `/etc/group` of a container's root, without leaving that root.
//!
//! The primary group is also set as a supplementary group: a process that changes its group by a set-group-id program
//! stays a member, so that files closed to the group stay closed to it (CVE-2023-25173).

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use linux::beneath::Root;
use stdx::Mutex;
use types::spec::runtime::User;
use types::{Context, Error, Result};

/// The most bytes read of either file.
const FILE_LEN_MAX: u64 = 4 << 20;

/// The most supplementary groups of a user: the kernel's `NGROUPS_MAX`.
const GROUPS_MAX: usize = 65_536;

/// Resolves `USER[:GROUP]`, each a name or a number, to a user and its home directory. `further` are additional
/// supplementary groups. `tree` opens the container's root, if needed.
pub(crate) fn resolve(
    text: &str,
    further: &[String],
    tree: impl FnOnce() -> Result<OwnedFd>,
) -> Result<(User, String)> {
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    // Root exists whether or not the image lists it.
    let user = if user.is_empty() || user == "root" { "0" } else { user };
    let root = Root::from_fd(tree()?, Path::new("the container's root"));
    let (passwd, groups) = (read_file(&root, "/etc/passwd")?, read_file(&root, "/etc/group")?);
    let (mut found, home) = lookup(user, group, &passwd, &groups)?;
    if !found.additional_gids.contains(&found.gid) {
        found.additional_gids.insert(0, found.gid);
    }
    for name in further {
        let gid = group_number(name, &groups)?;
        if !found.additional_gids.contains(&gid) {
            found.additional_gids.push(gid);
        }
    }
    Ok((found, home))
}

/// Cache of users resolved in images, whose snapshots never change. Saves mounting the image for each container.
#[derive(Default)]
pub(crate) struct Known(Mutex<HashMap<Asked, (User, String)>>);

/// The chain id of the topmost layer, the user, and the additional groups.
type Asked = (String, String, Vec<String>);

/// The most cached users; beyond that the cache is cleared.
const KNOWN_MAX: usize = 1024;

/// Longest cached entry, in bytes: the image determines the length of the user's name and home and the number of groups
/// (CVE-2026-47262).
const KNOWN_LEN_MAX: usize = 4096;

impl Known {
    /// See [`resolve`]; `top` is `None` for a container's own snapshot, whose result is not cached.
    pub(crate) fn resolve(
        &self,
        top: Option<&str>,
        text: &str,
        further: &[String],
        tree: impl FnOnce() -> Result<OwnedFd>,
    ) -> Result<(User, String)> {
        let Some(top) = top else { return resolve(text, further, tree) };
        let asked = (top.to_owned(), text.to_owned(), further.to_vec());
        let known = || self.0.lock();
        if let Some(found) = known().get(&asked) {
            return Ok(found.clone());
        }
        let found = resolve(text, further, tree)?;
        let (user, home) = &found;
        let asked_len = text.len() + further.iter().map(String::len).sum::<usize>();
        if asked_len + home.len() + size_of_val(&user.additional_gids[..]) > KNOWN_LEN_MAX {
            return Ok(found);
        }
        let mut known = known();
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(asked, found.clone());
        Ok(found)
    }
}

fn group_rows(groups: &str) -> impl Iterator<Item = Vec<&str>> {
    groups.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(|fields| fields.len() >= 4)
}

/// A group's number, given by name or number.
fn group_number(group: &str, groups: &str) -> Result<u32> {
    if let Ok(gid) = group.parse() {
        return Ok(gid);
    }
    User::check_number(group)?;
    let row = group_rows(groups).find(|fields| fields[0] == group);
    row.and_then(|fields| fields[2].parse().ok()).ok_or_else(|| {
        Error::not_found(format!(
            "unable to find group {group}: no matching entry in /etc/group of the image"
        ))
    })
}

fn lookup(user: &str, group: Option<&str>, passwd: &str, groups: &str) -> Result<(User, String)> {
    let rows =
        || passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(|fields| fields.len() >= 6);
    User::check_number(user)?;
    let by_number = user.parse::<u32>().ok();
    // A number never means a name: otherwise the image's author could choose who a numeric user is.
    let row = rows().find(|fields| match by_number {
        Some(uid) => fields[2].parse() == Ok(uid),
        None => fields[0] == user,
    });
    let (uid, own_gid, home) = match (&row, by_number) {
        (Some(fields), _) => {
            let broken =
                || Error::invalid_argument(format!("/etc/passwd of the image has no number for {user}"));
            let id = |at: usize| fields[at].parse::<u32>().map_err(|_| broken());
            (id(2)?, id(3), fields[5].to_owned())
        }
        (None, Some(uid)) => (uid, Ok(0), if uid == 0 { "/root" } else { "/" }.to_owned()),
        (None, None) => {
            return Err(Error::not_found(format!(
                "unable to find user {user}: no matching entry in /etc/passwd of the image"
            )));
        }
    };
    let gid = group.map_or(own_gid, |group| group_number(group, groups))?;
    let name = row.map_or("", |fields| fields[0]);
    let additional_gids: Vec<u32> = group_rows(groups)
        .filter(|fields| {
            group.is_none() && !name.is_empty() && fields[3].split(',').any(|member| member == name)
        })
        .filter_map(|fields| fields[2].parse().ok())
        .take(GROUPS_MAX + 1)
        .collect();
    if additional_gids.len() > GROUPS_MAX {
        return Err(Error::invalid_argument(format!(
            "/etc/group of the image has user {name} in more than {GROUPS_MAX} groups"
        )));
    }
    Ok((User { uid, gid, additional_gids, ..User::default() }, home))
}

fn read_file(root: &Root, path: &str) -> Result<String> {
    let Some(fd) = root.find_file(Path::new(path))? else { return Ok(String::new()) };
    let mut bytes = Vec::new();
    File::from(fd)
        .take(FILE_LEN_MAX)
        .read_to_end(&mut bytes)
        .context(|| format!("read {path} of the image"))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_and_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nredis:x:999:998::/data:/bin/false\n";
        let groups = "root:x:0:\nredis:x:998:\nextra:x:50:redis,other\n";
        let find = |user: &str, group| lookup(user, group, passwd, groups);
        let (user, home) = find("redis", None).unwrap();
        assert_eq!((user.uid, user.gid, user.additional_gids, home.as_str()), (999, 998, vec![50], "/data"));
        assert_eq!(find("redis", Some("extra")).unwrap().0.gid, 50);
        assert_eq!(find("999", None).unwrap().0.gid, 998);
        assert_eq!(find("1234", None).unwrap().0.uid, 1234);
        assert!(find("nosuch", None).unwrap_err().to_string().contains("nosuch"));
        assert!(find("redis", Some("nosuch")).is_err());
    }

    /// CVE-2016-3697
    #[test]
    fn a_numeric_user_never_matches_a_name() {
        let (passwd, groups) = ("1000:x:0:0::/:/bin/sh\nweb:x:1000:33::/home/web:\n", "50:x:0:\n");
        let find = |user: &str, group| {
            let user = lookup(user, group, passwd, groups).unwrap().0;
            (user.uid, user.gid)
        };
        assert_eq!(find("1000", None), (1000, 33));
        assert_eq!(find("1000", Some("1000")), (1000, 1000));
        assert_eq!(find("web", Some("50")), (1000, 50));
    }

    #[test]
    fn a_home_is_that_of_the_user_whatever_the_group_is() {
        let dir = tempfile::tempdir().unwrap();
        let home = |text: &str| {
            let (user, home) = resolve(text, &[], || Ok(File::open(dir.path()).unwrap().into())).unwrap();
            format!("{}:{} {home}", user.uid, user.gid)
        };
        // Without /etc/passwd.
        assert_eq!(home(""), "0:0 /root");
        assert_eq!(home("root"), "0:0 /root");
        assert_eq!(home("0:0"), "0:0 /root");
        assert_eq!(home("1000:1000"), "1000:1000 /");
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        let rows = "root:x:0:0::/superuser:\nweb:x:1000:33::/home/web:\nodd:x:7:none::/home/odd:\n";
        std::fs::write(dir.path().join("etc/passwd"), rows).unwrap();
        for (text, expected) in [
            ("", "0:0 /superuser"),
            ("root", "0:0 /superuser"),
            ("0:5", "0:5 /superuser"),
            ("1000:1000", "1000:1000 /home/web"),
            ("1000", "1000:33 /home/web"),
            ("web:0", "1000:0 /home/web"),
            ("7:7", "7:7 /home/odd"),
            ("8:8", "8:8 /"),
        ] {
            assert_eq!(home(text), expected, "{text}");
        }
    }

    /// The image has entries with numeric names.
    #[test]
    fn a_number_that_does_not_fit_is_nobodys_name() {
        let (passwd, groups) = ("4294967296:x:0:0::/:\n-1:x:0:0::/:\nweb:x:33:33::/:\n", "4294967296:x:0:\n");
        for (user, group) in [("4294967296", None), ("-1", None), ("web", Some("4294967296"))] {
            let refused = lookup(user, group, passwd, groups).unwrap_err();
            assert!(refused.message().contains("is no user or group"), "{refused}");
        }
        group_number("4294967296", groups).unwrap_err();
    }

    #[test]
    fn a_user_in_more_groups_than_the_kernel_takes_is_refused() {
        let passwd = "web:x:33:33::/:\n";
        let groups = |count: usize| (0..count).map(|gid| format!("g:x:{gid}:web\n")).collect::<String>();
        let (user, _) = lookup("web", None, passwd, &groups(GROUPS_MAX)).unwrap();
        assert_eq!(user.additional_gids.len(), GROUPS_MAX);
        let refused = lookup("web", None, passwd, &groups(GROUPS_MAX + 1)).unwrap_err();
        assert!(refused.message().contains("groups"), "{refused}");
    }

    #[test]
    fn an_image_does_not_decide_how_much_is_kept_of_its_users() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        let (home, name) = ("x".repeat(KNOWN_LEN_MAX), "n".repeat(KNOWN_LEN_MAX));
        let rows = format!("long:x:1:1::/{home}:\nshort:x:2:2::/:\n{name}:x:3:3::/:\n");
        std::fs::write(dir.path().join("etc/passwd"), rows).unwrap();
        let known = Known::default();
        let mut looks = 0;
        let name = name.as_str();
        for (user, expected) in [("short", 1), ("short", 1), ("long", 2), ("long", 3), (name, 4), (name, 5)] {
            let tree = || {
                looks += 1;
                Ok(File::open(dir.path()).unwrap().into())
            };
            known.resolve(Some("top"), user, &[], tree).unwrap();
            assert_eq!(looks, expected, "{user}");
        }
    }

    #[test]
    fn a_user_is_in_further_groups() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/passwd"), "web:x:33:33::/:\n").unwrap();
        std::fs::write(dir.path().join("etc/group"), "video:x:44:web\nrender:x:107:\n").unwrap();
        let check = |user: &str, groups: &[&str], expected: &[u32]| {
            let groups: Vec<String> = groups.iter().map(ToString::to_string).collect();
            let found = resolve(user, &groups, || Ok(File::open(dir.path()).unwrap().into()));
            assert_eq!(found.unwrap().0.additional_gids, expected, "{user} {groups:?}");
        };
        check("", &["7", "8"], &[0, 7, 8]);
        check("", &["video", "7"], &[0, 44, 7]);
        check("5:6", &["render"], &[6, 107]);
        check("web", &["render", "video"], &[33, 44, 107]);
        let refused = resolve("", &["nosuch".into()], || Ok(File::open(dir.path()).unwrap().into()));
        assert!(refused.unwrap_err().message().contains("group nosuch"));
    }
}
