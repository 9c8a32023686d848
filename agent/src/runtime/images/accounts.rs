//! Users and groups of an image, as its own /etc/passwd and /etc/group say.

use super::super::{RuntimeError, UserSpec};

/// The two files, parsed. Lines that make no sense are left out, as the C library does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accounts {
    users: Vec<User>,
    groups: Vec<Group>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct User {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

/// Whom a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// Ascending, without gid.
    pub groups: Vec<u32>,
    /// $HOME.
    pub home: String,
}

impl Accounts {
    /// From the files' text.
    pub fn parse(passwd: &str, group: &str) -> Accounts {
        let users = passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
            let home = fields.nth(1).unwrap_or_default();
            Some(User {
                name: name.into(),
                uid: uid.parse().ok()?,
                gid: gid.parse().ok()?,
                home: home.into(),
            })
        });
        let groups = group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
            let members = fields.next().unwrap_or_default();
            let members = members.split(',').filter(|m| !m.is_empty()).map(str::to_owned).collect();
            Some(Group { name: name.into(), gid: gid.parse().ok()?, members })
        });
        Accounts { users: users.collect(), groups: groups.collect() }
    }

    /// Kubernetes' rules: the pod's numbers win over the image's USER; a user without group gets the one of
    /// /etc/passwd, or 0; the groups /etc/group puts the user in are added.
    pub(crate) fn identify(&self, image_user: &str, spec: &UserSpec) -> Result<Identity, RuntimeError> {
        let (written_user, written_group) = match image_user.split_once(':') {
            Some((user, group)) => (user, group),
            None => (image_user, ""),
        };
        let (uid, user, by_name) = match spec.uid {
            Some(uid) => (uid, self.by_uid(uid), false),
            None if written_user.is_empty() => (0, self.by_uid(0), false),
            None => match written_user.parse() {
                Ok(uid) => (uid, self.by_uid(uid), false),
                Err(_) => {
                    let user = self.users.iter().find(|user| user.name == written_user).ok_or_else(|| {
                        RuntimeError::Config(format!(
                            "the image wants to run as user {written_user:?}, which its /etc/passwd does not have"
                        ))
                    })?;
                    (user.uid, Some(user), true)
                }
            },
        };
        if spec.non_root && uid == 0 {
            return Err(RuntimeError::Config(
                "container has runAsNonRoot and image will run as root: set runAsUser, or use an image with a USER"
                    .into(),
            ));
        }
        if spec.non_root && by_name {
            // The name could be mapped to 0 by the next version of the image; Kubernetes refuses it as well.
            return Err(RuntimeError::Config(format!(
                "container has runAsNonRoot and image has non-numeric user ({written_user}), cannot verify user is \
                 non-root: set runAsUser"
            )));
        }
        let gid = match spec.gid {
            Some(gid) => gid,
            None if spec.uid.is_some() || written_group.is_empty() => user.map_or(0, |user| user.gid),
            None => match written_group.parse() {
                Ok(gid) => gid,
                Err(_) => self.groups.iter().find(|group| group.name == written_group).map(|g| g.gid).ok_or_else(
                    || {
                        RuntimeError::Config(format!(
                            "the image wants to run as group {written_group:?}, which its /etc/group does not have"
                        ))
                    },
                )?,
            },
        };
        let mut groups = spec.groups.clone();
        if let Some(user) = user {
            let of_user = self.groups.iter().filter(|group| group.members.contains(&user.name));
            groups.extend(of_user.map(|group| group.gid));
        }
        groups.sort_unstable();
        groups.dedup();
        groups.retain(|group| *group != gid);
        let home = user.map(|user| user.home.as_str()).filter(|home| !home.is_empty());
        let home = home.unwrap_or(if uid == 0 { "/root" } else { "/" }).to_owned();
        Ok(Identity { uid, gid, groups, home })
    }

    fn by_uid(&self, uid: u32) -> Option<&User> {
        self.users.iter().find(|user| user.uid == uid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts::parse(
            "root:x:0:0:root:/root:/bin/sh\nredis:x:999:998::/home/redis:/bin/false\nbroken\nbad:x:a:b:c:d:e\n",
            "root:x:0:root\nredis:x:998:\nwheel:x:10:root,redis\nlog:x:4:redis\n",
        )
    }

    fn identify(image: &str, spec: UserSpec) -> Result<(u32, u32, Vec<u32>), String> {
        accounts().identify(image, &spec).map(|i| (i.uid, i.gid, i.groups)).map_err(|e| e.to_string())
    }

    #[test]
    fn nobody_named_is_root() {
        assert_eq!(identify("", UserSpec::default()), Ok((0, 0, vec![10])));
        assert_eq!(Accounts::default().identify("", &UserSpec::default()).unwrap().home, "/root");
    }

    #[test]
    fn names_and_numbers_mean_the_same() {
        assert_eq!(identify("redis", UserSpec::default()), Ok((999, 998, vec![4, 10])));
        assert_eq!(identify("999", UserSpec::default()), Ok((999, 998, vec![4, 10])));
        assert_eq!(identify("redis:wheel", UserSpec::default()), Ok((999, 10, vec![4])));
        assert_eq!(identify("1234", UserSpec::default()), Ok((1234, 0, vec![])));
        assert_eq!(identify("1234:77", UserSpec::default()), Ok((1234, 77, vec![])));
    }

    #[test]
    fn the_pods_numbers_win_over_the_images() {
        let spec = UserSpec { uid: Some(999), ..UserSpec::default() };
        assert_eq!(identify("root:wheel", spec), Ok((999, 998, vec![4, 10])));
        let spec = UserSpec { uid: Some(5), gid: Some(6), groups: vec![9, 7, 9], ..UserSpec::default() };
        assert_eq!(identify("redis", spec), Ok((5, 6, vec![7, 9])));
    }

    #[test]
    fn unknown_names_are_said() {
        assert!(identify("ghost", UserSpec::default()).unwrap_err().contains("\"ghost\""));
        assert!(identify("redis:ghost", UserSpec::default()).unwrap_err().contains("/etc/group"));
    }

    #[test]
    fn non_root_is_refused_where_it_is_root_or_cannot_be_known() {
        let spec = |uid| UserSpec { uid, non_root: true, ..UserSpec::default() };
        assert!(identify("", spec(None)).unwrap_err().contains("runAsNonRoot"));
        assert!(identify("redis", spec(None)).unwrap_err().contains("non-numeric"));
        assert!(identify("999", spec(None)).is_ok());
        assert!(identify("", spec(Some(1))).is_ok());
        assert!(identify("999", spec(Some(0))).is_err());
    }
}
