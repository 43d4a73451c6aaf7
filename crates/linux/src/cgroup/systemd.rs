//! Cgroups made by systemd: a transient scope for each container.
//!
//! On a host booted with systemd, systemd is the single writer of the hierarchy: it may change cgroups that others make
//! beside it at its next reload. So systemd is asked for a scope, with the limits that it knows as properties; other
//! limits are written to the files afterwards, which systemd leaves alone as the scope is delegated.
//!
//! ```text
//! "machine.slice:libpod:abc" ─▶ libpod-abc.scope ─▶ /machine.slice/libpod-abc.scope
//! start: StartTransientUnit(properties, PIDs) ─▶ JobRemoved     stop: StopUnit ─▶ JobRemoved
//! ```
//!
//! A scope starts with a process in it: the container's first, which waits until the scope exists.
//!
//! A user without privileges on the host's systemd has an instance of its own while logged in, `user@UID.service`, with
//! a delegated part of the version 2 hierarchy.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Component, Path, PathBuf};

use types::spec::runtime::{CpuResources, DeviceRule, LinuxResources};
use types::{Error, ErrorKind, Result};

use super::limits_v2::{WEIGHTS, io_weight, is_idle, swap_max, weight_of_shares};
use super::{Cgroup, Hierarchies, Version, devices, unit_properties, update};
use crate::dbus::{Connection, Object, Value};

/// systemd's private socket, for root, and the system bus, for callers that can only reach that.
const PRIVATE: &str = "/run/systemd/private";
const BUS: &str = "/run/dbus/system_bus_socket";
/// The same of a user instance, below `XDG_RUNTIME_DIR`.
const PRIVATE_OF_USER: &str = "systemd/private";
const BUS_OF_USER: &str = "bus";

const SYSTEMD: Object = Object {
    destination: "org.freedesktop.systemd1",
    path: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.systemd1.Manager",
};

const PROPERTIES: Object = Object { interface: "org.freedesktop.DBus.Properties", ..SYSTEMD };

/// Bytes of a unit's name, at most (systemd.unit(5)).
const NAME_MAX: usize = 255;

/// A systemd instance: the host's, or a user's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Instance {
    /// PID 1 of the host.
    Host,
    /// A user instance, by the sockets at which it may listen, in the order in which they are tried.
    User(Vec<PathBuf>),
}

impl Instance {
    /// The instance that the caller may use, by its environment: the host's for the host's root, and for root of a user
    /// namespace in which PID 1 is too; otherwise the user's, below `XDG_RUNTIME_DIR` or on the bus of
    /// `DBUS_SESSION_BUS_ADDRESS`. `FailedPrecondition` if neither is set.
    pub fn of_caller(variable: impl Fn(&str) -> Option<OsString>) -> Result<Instance> {
        // To root of a user namespace, files of the host's root belong to nobody.
        let is_owner = |socket: rustix::fs::Stat| socket.st_uid == rustix::process::geteuid().as_raw();
        if super::is_privileged() || rustix::fs::stat(PRIVATE).is_ok_and(is_owner) {
            return Ok(Instance::Host);
        }
        Instance::of_user(variable)
    }

    fn of_user(variable: impl Fn(&str) -> Option<OsString>) -> Result<Instance> {
        let mut sockets = Vec::new();
        if let Some(dir) = variable("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute()) {
            sockets.extend([PRIVATE_OF_USER, BUS_OF_USER].map(|socket| dir.join(socket)));
        }
        if let Some(address) = variable("DBUS_SESSION_BUS_ADDRESS") {
            sockets.extend(paths_of_bus(&address.to_string_lossy()));
        }
        if sockets.is_empty() {
            return Err(Error::failed_precondition(
                "who is not root asks its own systemd for cgroups, which is found by XDG_RUNTIME_DIR or \
                 DBUS_SESSION_BUS_ADDRESS: neither is set; log in, or use the cgroupfs driver",
            ));
        }
        Ok(Instance::User(sockets))
    }

    /// A user instance at one of these sockets; the host's if empty.
    pub fn at(sockets: &[PathBuf]) -> Instance {
        if sockets.is_empty() { Instance::Host } else { Instance::User(sockets.to_vec()) }
    }

    /// The sockets of a user instance; empty for the host's.
    pub fn sockets(&self) -> &[PathBuf] {
        match self {
            Instance::Host => &[],
            Instance::User(sockets) => sockets,
        }
    }

    /// The default slice of containers.
    fn slice(&self) -> &'static str {
        match self {
            Instance::Host => "system.slice",
            Instance::User(_) => "user.slice",
        }
    }

    /// The cgroup below which the instance manages its units, from the root of the hierarchy: empty is the root.
    fn cgroup(&self) -> Result<String> {
        if *self == Instance::Host {
            return Ok(String::new());
        }
        if Hierarchies::detect()?.version() != Version::V2 {
            return Err(Error::failed_precondition(
                "a user's own systemd has cgroups for containers on hosts with version 2 only",
            ));
        }
        let cgroup = Systemd::connect(self)?.property("ControlGroup")?;
        let is_plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
        if !Path::new(&cgroup).components().all(is_plain) {
            return Err(Error::internal(format!("systemd says that its cgroup is {cgroup:?}")));
        }
        Ok(cgroup)
    }

    /// Connects to the first of its sockets that accepts the caller.
    fn connect(&self) -> Result<Connection> {
        let of_host = [PRIVATE, BUS].map(PathBuf::from);
        let sockets = match self {
            Instance::Host => &of_host[..],
            Instance::User(sockets) => sockets,
        };
        let mut absent = Error::not_found("it has no socket");
        for socket in sockets {
            let is_bus = !socket.ends_with(PRIVATE_OF_USER);
            match Connection::open(socket, is_bus) {
                Ok(mut connection) => {
                    if is_bus {
                        connection.add_match(
                            "type='signal',sender='org.freedesktop.systemd1',\
                             interface='org.freedesktop.systemd1.Manager',member='JobRemoved'",
                        )?;
                    }
                    return Ok(connection);
                }
                Err(error) if error.is(ErrorKind::NotFound) || error.is(ErrorKind::PermissionDenied) => {
                    absent = error;
                }
                Err(error) => return Err(error),
            }
        }
        Err(absent)
    }
}

/// The socket files in a bus address (D-Bus specification, "Server Addresses").
fn paths_of_bus(address: &str) -> impl Iterator<Item = PathBuf> {
    let keys = address.split(';').filter_map(|one| one.strip_prefix("unix:")).flat_map(|one| one.split(','));
    keys.filter_map(|key| key.strip_prefix("path=")).map(PathBuf::from)
}

/// A scope of systemd, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    instance: Instance,
    /// The instance's cgroup, from the root of the hierarchy.
    top: String,
    slice: String,
    name: String,
}

impl Scope {
    /// Parses `slice:prefix:name`, the form of `cgroupsPath` under this driver. An empty text is a scope of `id` in
    /// `system.slice`, or in a user's `user.slice`. A user instance is asked for its cgroup.
    pub fn parse(path: &str, id: &str, instance: Instance) -> Result<Scope> {
        let mut scope = Scope::named(path, id, instance)?;
        scope.top = scope.instance.cgroup()?;
        Ok(scope)
    }

    fn named(path: &str, id: &str, instance: Instance) -> Result<Scope> {
        let bad = |why: &str| Error::invalid_argument(format!("cgroupsPath {path:?}: {why}"));
        let parts =
            if path.is_empty() { vec![instance.slice(), "hoist", id] } else { path.split(':').collect() };
        let [slice, prefix, name] = parts[..] else {
            return Err(bad("under systemd it has the form slice:prefix:name"));
        };
        let slice = if slice.is_empty() { instance.slice() } else { slice };
        slice_path(slice).ok_or_else(|| bad("its first part is not the name of a slice"))?;
        // An empty prefix keeps its dash, as with runc and crun: the path's author looks for the unit by that name.
        let name = format!("{prefix}-{name}.scope");
        let is_valid = |character: char| character.is_ascii_alphanumeric() || ":-_.\\@".contains(character);
        let is_empty = name == "-.scope";
        if is_empty || name.len() > NAME_MAX || name.starts_with('.') || !name.chars().all(is_valid) {
            return Err(bad("its parts do not make the name of a unit"));
        }
        Ok(Scope { slice: slice.to_owned(), name, top: String::new(), instance })
    }

    /// The instance that manages it.
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// Unit name: `libpod-abc.scope`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Starts the scope with the process `first` in it, and sets all limits and device rules, and the properties in
    /// annotations (`org.systemd.property.…`).
    ///
    /// `FailedPrecondition` if systemd does not run, `AlreadyExists` if there is a scope of this name.
    pub fn start(
        &self,
        resources: &LinuxResources,
        annotations: &BTreeMap<String, String>,
        first: u32,
    ) -> Result<Cgroup> {
        let annotated = unit_properties::properties(annotations)?;
        let hierarchies = Hierarchies::detect()?;
        let mut systemd = Systemd::connect(&self.instance)?;
        let mut properties = self.properties(hierarchies.version(), first);
        properties.extend(limits(resources, hierarchies.version())?);
        properties.extend(device_rules(&resources.devices)?);
        systemd.leave_out_unknown(&mut properties)?;
        systemd.start(&self.name, named(properties).chain(annotated).collect())?;
        let made = self.complete(&hierarchies, resources, first);
        if made.is_err() {
            // The first error is reported.
            let _ = systemd.stop(&self.name);
        }
        made
    }

    fn complete(&self, hierarchies: &Hierarchies, resources: &LinuxResources, first: u32) -> Result<Cgroup> {
        let cgroup = hierarchies.adopt(&self.path())?;
        cgroup.apply(resources)?;
        // For hierarchies of version 1 that systemd does not manage.
        cgroup.add(first)?;
        Ok(cgroup)
    }

    /// The cgroup of the scope, once it is started.
    pub fn open(&self) -> Result<Cgroup> {
        Hierarchies::detect()?.open(&self.path())
    }

    /// The path of its cgroup in each hierarchy.
    pub fn path(&self) -> String {
        let slice = slice_path(&self.slice).expect("checked when it was read");
        let top = Path::new("/").join(self.top.trim_start_matches('/'));
        top.join(slice).join(&self.name).display().to_string()
    }

    /// Kills the remaining processes and removes the scope. No error if it is gone, as after its last process has
    /// ended.
    pub fn stop(&self) -> Result<()> {
        stop_scope(&self.instance, &self.name)
    }

    fn properties(&self, version: Version, first: u32) -> Properties {
        let accounts = if version == Version::V2 { "IOAccounting" } else { "BlockIOAccounting" };
        vec![
            ("Description", Value::Text(format!("container {}", self.name.trim_end_matches(".scope")))),
            ("Slice", Value::Text(self.slice.clone())),
            ("PIDs", Value::U32s(vec![first])),
            ("Delegate", Value::Bool(true)),
            ("DefaultDependencies", Value::Bool(false)),
            ("CPUAccounting", Value::Bool(true)),
            ("MemoryAccounting", Value::Bool(true)),
            ("TasksAccounting", Value::Bool(true)),
            (accounts, Value::Bool(true)),
        ]
    }
}

/// As [`Cgroup::update`] for the cgroup of a scope: systemd is told too.
///
/// The kernel's files are written first: if the kernel refuses a limit, systemd never learns of it.
pub fn update_scope(
    instance: &Instance,
    name: &str,
    cgroup: &Cgroup,
    resources: &LinuxResources,
) -> Result<()> {
    let mut properties = limits(resources, Hierarchies::detect()?.version())?;
    if properties.is_empty() {
        return cgroup.update(resources);
    }
    let mut systemd = Systemd::connect(instance)?;
    systemd.leave_out_unknown(&mut properties)?;
    update::all_or_nothing(cgroup, || {
        cgroup.set_limits(resources)?;
        systemd.set(name, named(properties).collect())?;
        // systemd writes the values with its own precision, such as quotas in steps, so they are written again.
        let mut again = resources.clone();
        if let Some(memory) = &mut again.memory {
            memory.check_before_update = None;
        }
        cgroup.set_limits(&again)
    })
}

/// Kills the remaining processes of a scope and removes it. No error if it is gone, as after its last process has
/// ended.
pub fn stop_scope(instance: &Instance, name: &str) -> Result<()> {
    Systemd::connect(instance)?.stop(name)
}

type Properties = Vec<(&'static str, Value)>;

/// Appended last: a later value of a property replaces an earlier one.
fn named(properties: Properties) -> impl Iterator<Item = (String, Value)> {
    properties.into_iter().map(|(name, value)| (name.to_owned(), value))
}

/// The kernel's `cpu.idle`.
const IDLE: (&str, Value) = ("CPUWeight", Value::U64(0));

/// The systemd version that introduced a property, if hosts may have an older one (its NEWS). An unknown property fails
/// the whole call; its limit is written to the files in any case.
fn since(property: &(&str, Value)) -> Option<u32> {
    match property.0 {
        "CPUQuotaPeriodUSec" => Some(242),
        "AllowedCPUs" | "AllowedMemoryNodes" => Some(244),
        _ if *property == IDLE => Some(252),
        _ => None,
    }
}

/// The path of a slice: `a-b.slice` is below `a.slice` (systemd.slice(5)). None if it is no slice's name.
fn slice_path(slice: &str) -> Option<PathBuf> {
    let name = slice.strip_suffix(".slice")?;
    if name == "-" {
        return Some(PathBuf::new());
    }
    let is_valid = |part: &str| !part.is_empty() && !part.contains('/');
    let mut path = PathBuf::new();
    let mut prefix = String::new();
    for part in name.split('-') {
        if !is_valid(part) {
            return None;
        }
        prefix.push_str(part);
        path.push(format!("{prefix}.slice"));
        prefix.push('-');
    }
    Some(path)
}

/// The limits that have systemd properties.
fn limits(resources: &LinuxResources, version: Version) -> Result<Properties> {
    let mut properties = Properties::new();
    let is_v2 = version == Version::V2;
    if let Some(memory) = &resources.memory {
        if let Some(limit) = memory.limit.filter(|limit| *limit != 0) {
            properties.push((if is_v2 { "MemoryMax" } else { "MemoryLimit" }, or_infinity(limit)));
        }
        if let Some(reservation) = memory.reservation.filter(|reservation| *reservation != 0 && is_v2) {
            properties.push(("MemoryLow", or_infinity(reservation)));
        }
        if is_v2 && let Some(swap) = swap_max(memory)? {
            properties.push(("MemorySwapMax", Value::U64(swap.parse().unwrap_or(u64::MAX))));
        }
    }
    if let Some(cpu) = &resources.cpu {
        if let Some(shares) = cpu.shares.filter(|shares| *shares != 0 && !is_idle(resources)) {
            properties.push(if is_v2 {
                ("CPUWeight", Value::U64(weight_of_shares(shares)))
            } else {
                ("CPUShares", Value::U64(shares))
            });
        }
        if is_v2 && cpu.idle == Some(1) {
            properties.push(IDLE);
        }
        properties.extend(quota(cpu));
        // systemd does not manage cpusets of version 1, and before version 244 it refuses unknown properties.
        let lists = [("AllowedCPUs", &cpu.cpus), ("AllowedMemoryNodes", &cpu.mems)];
        for (name, list) in lists.into_iter().filter(|(_, list)| is_v2 && !list.is_empty()) {
            properties.push((name, Value::Bytes(bits(list)?)));
        }
    }
    let weight = resources.block_io.as_ref().and_then(|block_io| block_io.weight);
    if let Some(weight) = weight.filter(|weight| *weight != 0) {
        properties.push(if is_v2 {
            ("IOWeight", Value::U64(io_weight(weight)))
        } else {
            ("BlockIOWeight", Value::U64(weight.into()))
        });
    }
    if let Some(limit) = resources.pids.as_ref().and_then(|pids| pids.limit) {
        // 0 would keep the first process out.
        properties.push(("TasksMax", or_infinity(if limit == 0 { 1 } else { limit })));
    }
    if is_v2 {
        // Last, as their files are written last too.
        properties.extend(unified(&resources.unified, is_idle(resources)));
    }
    Ok(properties)
}

/// Files of version 2 that have systemd properties. Values that are no numbers are left to the kernel.
fn unified(files: &BTreeMap<String, String>, is_idle: bool) -> Properties {
    let mut properties = Properties::new();
    for (name, value) in files {
        let value = value.trim();
        let number = || if value == "max" { Some(u64::MAX) } else { value.parse().ok() };
        let one = |name: &'static str, number: Option<u64>| number.map(|number| (name, Value::U64(number)));
        let list = |name: &'static str| bits(value).ok().map(|bits| (name, Value::Bytes(bits)));
        properties.extend(match name.as_str() {
            "cpu.idle" if is_idle => Some(IDLE),
            weight if is_idle && WEIGHTS.contains(&weight) => None,
            "cpu.weight" => one("CPUWeight", value.parse().ok()),
            "cpuset.cpus" => list("AllowedCPUs"),
            "cpuset.mems" => list("AllowedMemoryNodes"),
            "io.weight" => one("IOWeight", value.strip_prefix("default ").unwrap_or(value).parse().ok()),
            "memory.high" => one("MemoryHigh", number()),
            "memory.low" => one("MemoryLow", number()),
            "memory.max" => one("MemoryMax", number()),
            "memory.min" => one("MemoryMin", number()),
            "memory.swap.max" => one("MemorySwapMax", number()),
            "pids.max" => one("TasksMax", number().map(|most| most.max(1))),
            _ => None,
        });
        if name == "cpu.max" {
            let (most, period) = value.split_once(' ').unwrap_or((value, "100000"));
            let (most, period) = (most.parse().unwrap_or(-1), period.trim().parse().ok());
            properties.extend(quota(&CpuResources { quota: Some(most), period, ..CpuResources::default() }));
        }
    }
    properties
}

fn or_infinity(limit: i64) -> Value {
    Value::U64(u64::try_from(limit).unwrap_or(u64::MAX))
}

/// systemd counts in hundredths of a processor, so a quota is rounded up; the exact value is written to the file
/// afterwards.
fn quota(cpu: &CpuResources) -> Properties {
    const STEP_US: u64 = 10_000;
    let (quota, period) = (cpu.quota.unwrap_or(0), cpu.period.unwrap_or(0));
    if quota == 0 && period == 0 {
        return Properties::new();
    }
    let per_second = match u64::try_from(quota) {
        Ok(quota) if quota > 0 => {
            let period = if period == 0 { 100_000 } else { period };
            (quota.saturating_mul(1_000_000) / period).next_multiple_of(STEP_US)
        }
        _ => u64::MAX,
    };
    let mut properties = vec![("CPUQuotaPerSecUSec", Value::U64(per_second))];
    if period != 0 {
        properties.push(("CPUQuotaPeriodUSec", Value::U64(period)));
    }
    properties
}

/// Parses `0-2,5` into a bit mask, lowest bits first.
fn bits(list: &str) -> Result<Vec<u8>> {
    const HIGHEST: u32 = 8191;
    let bad = || Error::invalid_argument(format!("{list:?} is not a list of processors or memory nodes"));
    let ranges = stdx::ranges(list).filter(|ranges| ranges.iter().all(|range| *range.end() <= HIGHEST));
    let mut bytes = Vec::new();
    for number in ranges.ok_or_else(bad)?.into_iter().flatten() {
        let (byte, bit) = ((number / 8) as usize, number % 8);
        if bytes.len() <= byte {
            bytes.resize(byte + 1, 0);
        }
        bytes[byte] |= 1 << bit;
    }
    Ok(bytes)
}

/// Device rules as properties, so that they survive a reload of systemd. It cannot express exceptions from "all": those
/// are only in Hoist's own program.
fn device_rules(rules: &[DeviceRule]) -> Result<Properties> {
    let groups = fs::read_to_string("/proc/devices").unwrap_or_default();
    Ok(match devices::allowed(rules)? {
        None => vec![("DevicePolicy", Value::Text("auto".into()))],
        Some(allowed) => {
            let entries = allowed.iter().filter_map(|device| {
                let name = device_name(device, &groups)?;
                Some((name, device.letters()))
            });
            vec![
                ("DevicePolicy", Value::Text("strict".into())),
                ("DeviceAllow", Value::Pairs(entries.collect())),
            ]
        }
    })
}

/// systemd's name of a device (systemd.resource-control(5), "DeviceAllow"). None if it has none.
fn device_name(device: &devices::Exception, groups: &str) -> Option<String> {
    let kind = if device.is_block() { "block" } else { "char" };
    match (device.major, device.minor) {
        (None, None) => Some(format!("{kind}-*")),
        (Some(major), None) => Some(format!("{kind}-{}", group(groups, device.is_block(), major)?)),
        (Some(major), Some(minor)) => Some(format!("/dev/{kind}/{major}:{minor}")),
        (None, Some(_)) => None,
    }
}

/// The name of a major number's driver, from `/proc/devices`.
fn group(devices: &str, is_block: bool, major: u32) -> Option<&str> {
    let (chars, blocks) = devices.split_once("Block devices:").unwrap_or((devices, ""));
    let lines = if is_block { blocks } else { chars };
    lines.lines().find_map(|line| {
        let (number, name) = line.trim().split_once(' ')?;
        (number.parse() == Ok(major)).then_some(name)
    })
}

/// A connection to systemd.
struct Systemd(Connection);

impl Systemd {
    fn connect(instance: &Instance) -> Result<Systemd> {
        let whose = match instance {
            Instance::Host => "on this host",
            Instance::User(_) => "for this user",
        };
        let mut connection = instance.connect().map_err(|error| {
            Error::failed_precondition(format!(
                "systemd does not answer {whose}; use the cgroupfs driver instead of the systemd one"
            ))
            .with_source(error)
        })?;
        // Without a subscriber systemd sends no job signals.
        connection.call(SYSTEMD.method("Subscribe"), &[])?;
        Ok(Systemd(connection))
    }

    /// Drops properties for which this version would refuse the whole unit.
    fn leave_out_unknown(&mut self, properties: &mut Properties) -> Result<()> {
        if properties.iter().any(|property| since(property).is_some()) {
            let version = self.version()?;
            properties.retain(|property| since(property).is_none_or(|since| since <= version));
        }
        Ok(())
    }

    /// `252` of `252.30-1~deb12u2`.
    fn version(&mut self) -> Result<u32> {
        let text = self.property("Version")?;
        let number = text.trim_start_matches('v').split(|letter: char| !letter.is_ascii_digit()).next();
        let digits = number.unwrap_or_default();
        digits.parse().map_err(|_| Error::internal(format!("systemd says that its version is {text:?}")))
    }

    /// A string property of the manager.
    fn property(&mut self, name: &str) -> Result<String> {
        let words = [SYSTEMD.interface, name].map(|word| Value::Text(word.to_owned()));
        let texts = self.0.call(PROPERTIES.method("Get"), &words)?.texts()?;
        texts.into_iter().next().ok_or_else(|| Error::internal(format!("systemd has no {name}")))
    }

    fn start(&mut self, unit: &str, properties: Vec<(String, Value)>) -> Result<()> {
        let text = |text: &str| Value::Text(text.to_owned());
        let arguments = [text(unit), text("fail"), Value::Properties(properties), Value::NoUnits];
        let mut answer = self.0.call(SYSTEMD.method("StartTransientUnit"), &arguments);
        if answer.as_ref().is_err_and(|error| error.is(ErrorKind::AlreadyExists)) {
            // A failed unit stays until it is reset; a live one stays in any case.
            self.forget(unit);
            answer = self.0.call(SYSTEMD.method("StartTransientUnit"), &arguments);
        }
        self.wait(unit, &answer?.texts()?)
    }

    fn set(&mut self, unit: &str, properties: Vec<(String, Value)>) -> Result<()> {
        let unit = Value::Text(unit.to_owned());
        let arguments = [unit, Value::Bool(true), Value::Properties(properties)];
        self.0.call(SYSTEMD.method("SetUnitProperties"), &arguments).map(drop)
    }

    fn stop(&mut self, unit: &str) -> Result<()> {
        let text = |text: &str| Value::Text(text.to_owned());
        match self.0.call(SYSTEMD.method("StopUnit"), &[text(unit), text("replace")]) {
            Ok(answer) => self.wait(unit, &answer.texts()?)?,
            Err(error) if error.is(ErrorKind::NotFound) => {}
            Err(error) => return Err(error),
        }
        self.forget(unit);
        Ok(())
    }

    /// Resets a failed unit. A unit that has not failed is unknown by now, which is ignored.
    fn forget(&mut self, unit: &str) {
        let _ = self.0.call(SYSTEMD.method("ResetFailedUnit"), &[Value::Text(unit.to_owned())]);
    }

    /// Waits for the end of the job that a call returned.
    fn wait(&mut self, unit: &str, answer: &[String]) -> Result<()> {
        let job = answer.first().ok_or_else(|| Error::internal("systemd answered without naming a job"))?;
        let removed = self.0.wait_for_signal(|signal| {
            // Without the number: job, unit, result.
            signal.member == "JobRemoved" && signal.texts().is_ok_and(|texts| texts.first() == Some(job))
        })?;
        match removed.texts()?.get(2).map(String::as_str) {
            Some("done") => Ok(()),
            result => {
                let result = result.unwrap_or("unknown");
                Err(Error::aborted(format!("systemd's job for {unit} ended with the result {result:?}")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::spec::runtime::{BlockIoResources, MemoryResources, PidsResources};

    #[test]
    fn paths_name_a_slice_and_a_scope() {
        let scope =
            |path: &str| Scope::named(path, "id", Instance::Host).map(|scope| (scope.slice, scope.name));
        let ok = |slice: &str, name: &str| (slice.to_owned(), name.to_owned());
        assert_eq!(scope("machine.slice:libpod:abc").unwrap(), ok("machine.slice", "libpod-abc.scope"));
        assert_eq!(scope(":docker:abc").unwrap(), ok("system.slice", "docker-abc.scope"));
        assert_eq!(scope("a.slice::abc").unwrap(), ok("a.slice", "-abc.scope"));
        assert_eq!(scope("").unwrap(), ok("system.slice", "hoist-id.scope"));
        for bad in [
            "/hoist/abc",
            "a:b",
            "a:b:c",
            "a.slice:b:c:d",
            "a/b.slice:b:c",
            "a.slice:b:../c",
            "-a.slice:b:c",
            "::",
        ] {
            assert!(scope(bad).is_err(), "{bad}");
        }
        for path in ["", ":hoist:id"] {
            let user = Instance::User(vec!["/run/user/7/bus".into()]);
            let of_user = Scope { top: "/a/b".into(), ..Scope::named(path, "id", user).unwrap() };
            assert_eq!(of_user.path(), "/a/b/user.slice/hoist-id.scope");
        }
    }

    #[test]
    fn each_user_has_a_systemd_of_its_own() {
        let of_user = |variables: &[(&str, &str)]| {
            Instance::of_user(|name| {
                variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
            })
        };
        let at = |sockets: &[&str]| Instance::User(sockets.iter().map(PathBuf::from).collect());
        let below = ["/run/user/7/systemd/private", "/run/user/7/bus"];
        let dir = ("XDG_RUNTIME_DIR", "/run/user/7");
        let bus = ("DBUS_SESSION_BUS_ADDRESS", "tcp:host=a,port=1;unix:guid=0,path=/a/b;unix:abstract=/c");
        assert_eq!(of_user(&[dir]).unwrap(), at(&below));
        assert_eq!(of_user(&[bus]).unwrap(), at(&["/a/b"]));
        assert_eq!(of_user(&[bus, dir]).unwrap(), at(&[below[0], below[1], "/a/b"]));
        for nowhere in [&[][..], &[("XDG_RUNTIME_DIR", "")], &[("XDG_RUNTIME_DIR", "run")]] {
            let error = of_user(nowhere).unwrap_err();
            assert!(error.is(ErrorKind::FailedPrecondition), "{nowhere:?}: {error:?}");
        }
        for instance in [Instance::Host, at(&below)] {
            assert_eq!(Instance::at(instance.sockets()), instance);
        }
    }

    #[test]
    fn slices_are_below_one_another() {
        let path = |slice: &str| slice_path(slice).map(|path| path.display().to_string());
        assert_eq!(path("a-b-c.slice").as_deref(), Some("a.slice/a-b.slice/a-b-c.slice"));
        assert_eq!(path("-.slice").as_deref(), Some(""));
        assert_eq!((path("a--b.slice"), path("a-.slice"), path("a")), (None, None, None));
    }

    #[test]
    fn limits_become_properties() {
        let resources = LinuxResources {
            memory: Some(MemoryResources { limit: Some(100), swap: Some(300), ..MemoryResources::default() }),
            cpu: Some(CpuResources {
                shares: Some(1024),
                quota: Some(1500),
                period: Some(100_000),
                cpus: "0-2,9".into(),
                ..CpuResources::default()
            }),
            block_io: Some(BlockIoResources { weight: Some(300), ..BlockIoResources::default() }),
            pids: Some(PidsResources { limit: Some(-1) }),
            ..LinuxResources::default()
        };
        let expected = [
            ("MemoryMax", Value::U64(100)),
            ("MemorySwapMax", Value::U64(200)),
            ("CPUWeight", Value::U64(100)),
            // 1.5 % is 2 % to systemd.
            ("CPUQuotaPerSecUSec", Value::U64(20_000)),
            ("CPUQuotaPeriodUSec", Value::U64(100_000)),
            ("AllowedCPUs", Value::Bytes(vec![0b111, 0b10])),
            ("IOWeight", Value::U64(io_weight(300))),
            ("TasksMax", Value::U64(u64::MAX)),
        ];
        assert_eq!(limits(&resources, Version::V2).unwrap(), expected);
        let names: Vec<&str> =
            limits(&resources, Version::V1).unwrap().iter().map(|(name, _)| *name).collect();
        assert_eq!(
            names,
            [
                "MemoryLimit",
                "CPUShares",
                "CPUQuotaPerSecUSec",
                "CPUQuotaPeriodUSec",
                "BlockIOWeight",
                "TasksMax"
            ]
        );
    }

    #[test]
    fn files_become_properties() {
        let check = |name: &str, value: &str, expected: &[(&'static str, Value)]| {
            let files = BTreeMap::from([(name.to_owned(), value.to_owned())]);
            let resources = LinuxResources { unified: files, ..LinuxResources::default() };
            assert_eq!(limits(&resources, Version::V2).unwrap(), expected, "{name} {value}");
            assert_eq!(limits(&resources, Version::V1).unwrap(), [], "they are none of version 1");
        };
        for (name, property) in [
            ("memory.high", "MemoryHigh"),
            ("memory.low", "MemoryLow"),
            ("memory.max", "MemoryMax"),
            ("memory.min", "MemoryMin"),
            ("memory.swap.max", "MemorySwapMax"),
            ("pids.max", "TasksMax"),
        ] {
            check(name, "4096", &[(property, Value::U64(4096))]);
            check(name, " max\n", &[(property, Value::U64(u64::MAX))]);
            check(name, "words", &[]);
        }
        check("pids.max", "0", &[("TasksMax", Value::U64(1))]);
        check("cpu.weight", "50", &[("CPUWeight", Value::U64(50))]);
        check("cpu.idle", "1", &[IDLE]);
        check("cpu.idle", "0", &[]);
        check("io.weight", "200", &[("IOWeight", Value::U64(200))]);
        check("io.weight", "default 200", &[("IOWeight", Value::U64(200))]);
        check("io.weight", "8:0 200", &[]);
        check("cpuset.cpus", "0,3", &[("AllowedCPUs", Value::Bytes(vec![0b1001]))]);
        check("cpuset.mems", "0", &[("AllowedMemoryNodes", Value::Bytes(vec![1]))]);
        let quota = |per_second: u64, period: u64| {
            [("CPUQuotaPerSecUSec", Value::U64(per_second)), ("CPUQuotaPeriodUSec", Value::U64(period))]
        };
        check("cpu.max", "50000 200000", &quota(250_000, 200_000));
        check("cpu.max", "50000", &quota(500_000, 100_000));
        check("cpu.max", "max 50000", &quota(u64::MAX, 50_000));
        check("memory.oom.group", "1", &[]);
        // An idle cgroup has no weight.
        let idle = CpuResources { idle: Some(1), shares: Some(512), ..CpuResources::default() };
        let weight = BTreeMap::from([("cpu.weight".to_owned(), "50".to_owned())]);
        let resources =
            LinuxResources { cpu: Some(idle), unified: weight.clone(), ..LinuxResources::default() };
        assert_eq!(limits(&resources, Version::V2).unwrap(), [IDLE]);
        let files = BTreeMap::from([("cpu.idle".to_owned(), "1".to_owned())]).into_iter().chain(weight);
        let shares = CpuResources { shares: Some(512), ..CpuResources::default() };
        let resources =
            LinuxResources { cpu: Some(shares), unified: files.collect(), ..LinuxResources::default() };
        assert_eq!(limits(&resources, Version::V2).unwrap(), [IDLE]);
    }

    #[test]
    fn properties_that_an_old_systemd_lacks_are_dropped() {
        let cpu = CpuResources {
            quota: Some(1500),
            period: Some(1000),
            cpus: "0".into(),
            mems: "0".into(),
            ..CpuResources::default()
        };
        let busy = LinuxResources { cpu: Some(cpu), ..LinuxResources::default() };
        let needed = |resources: &LinuxResources| -> Vec<(&'static str, u32)> {
            let properties = limits(resources, Version::V2).unwrap();
            properties.iter().filter_map(|property| Some((property.0, since(property)?))).collect()
        };
        let expected = [("CPUQuotaPeriodUSec", 242), ("AllowedCPUs", 244), ("AllowedMemoryNodes", 244)];
        assert_eq!(needed(&busy), expected);
        let weighed = |cpu| LinuxResources { cpu: Some(cpu), ..LinuxResources::default() };
        let idle = CpuResources { idle: Some(1), ..CpuResources::default() };
        assert_eq!(needed(&weighed(idle)), [("CPUWeight", 252)]);
        let shares = CpuResources { shares: Some(512), ..CpuResources::default() };
        assert_eq!(needed(&weighed(shares)), [], "all versions know weights");
    }

    #[test]
    fn devices_have_systemds_names() {
        let groups = "Character devices:\n  1 mem\n136 pts\n\nBlock devices:\n  7 loop\n";
        assert_eq!((group(groups, false, 136), group(groups, true, 7)), (Some("pts"), Some("loop")));
        assert_eq!((group(groups, true, 136), group(groups, false, 7)), (None, None));
        let rules = device_rules(&[]).unwrap();
        assert_eq!(rules[0], ("DevicePolicy", Value::Text("strict".into())));
        let ("DeviceAllow", Value::Pairs(allowed)) = &rules[1] else { panic!("{rules:?}") };
        assert!(allowed.contains(&("/dev/char/1:3".into(), "rwm".into())), "{allowed:?}");
        assert!(allowed.contains(&("char-*".into(), "m".into())), "{allowed:?}");
        let all = DeviceRule { allow: true, access: "rwm".into(), ..DeviceRule::default() };
        assert_eq!(device_rules(&[all]).unwrap(), [("DevicePolicy", Value::Text("auto".into()))]);
    }
}
