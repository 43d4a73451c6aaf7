//! Probes at each start which layer formats and snapshotters the kernel supports.
//!
//! Probing needs some disk space, and on a full disk the daemon must still start, so that space can be freed. So the
//! results are stored for starts at which probing fails:
//!
//! ```text
//! ROOT/probes     layers=archives|directories
//!                 snapshotter=NAME
//! ```
//!
//! The file is not essential: if it is missing or truncated, the daemon behaves as for a new root directory.

use std::fs;
use std::path::{Path, PathBuf};

use snapshot::{Backing, LayerForm, Native, Overlay};
use stdx::{Durable, replace};
use types::{Context, Error, ErrorKind, Result};

use crate::config::{AUTO, Layers};

const FILE: &str = "probes";
const LAYERS: &str = "layers=";
const SNAPSHOTTER: &str = "snapshotter=";
const ARCHIVES: &str = "archives";
const DIRECTORIES: &str = "directories";

/// Probes one root directory.
pub(crate) struct Probes<'a> {
    root: &'a Path,
    /// The directory of layers, where the probes run.
    trees: PathBuf,
    last: Found,
    /// The kernel's release.
    release: (u32, u32, u32),
    /// Runs one probe. `Unimplemented` if the kernel lacks the ability.
    probe: fn(&Path, Ability) -> Result<()>,
}

/// An ability of the kernel, on the file system of the layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ability {
    Archives(Backing),
    Verity,
    Overlays,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Found {
    form: Option<LayerForm>,
    snapshotter: Option<String>,
}

/// The resulting options for layers.
pub(crate) struct Choice {
    pub(crate) options: snapshot::Options,
    /// The default snapshotter.
    pub(crate) snapshotter: String,
}

/// The relevant part of the configuration.
pub(crate) struct Request<'a> {
    pub(crate) layers: Layers,
    pub(crate) backing: Backing,
    pub(crate) verity: bool,
    pub(crate) snapshotter: &'a str,
}

impl<'a> Probes<'a> {
    pub(crate) fn new(root: &'a Path) -> Probes<'a> {
        let text = fs::read_to_string(root.join(FILE)).unwrap_or_default();
        Probes {
            root,
            trees: root.join("snapshots").join(Overlay::NAME),
            last: Found::parse(&text),
            release: linux::release(),
            probe,
        }
    }

    /// Chooses what the configuration requests or else the kernel supports.
    pub(crate) fn choose(&self, wanted: &Request<'_>) -> Result<Choice> {
        let backing = self.backing(wanted.backing);
        let form = self.form(wanted.layers, backing)?;
        self.check(wanted, form)?;
        let snapshotter = match wanted.snapshotter {
            AUTO => self.snapshotter(),
            name => name.to_owned(),
        };
        let options = snapshot::Options { form, verity: wanted.verity, backing };
        let mut found = self.last.clone();
        if wanted.layers == Layers::Auto {
            found.form = Some(form);
        }
        if wanted.snapshotter == AUTO {
            found.snapshotter = Some(snapshotter.clone());
        }
        if found != self.last
            && let Err(error) = found.write(self.root)
        {
            tracing::warn!("{}", error.chain());
        }
        Ok(Choice { options, snapshotter })
    }

    /// The requested backing, or loop devices if the kernel is not known to read files reliably. Direct reads that are
    /// requested explicitly are kept, with a warning.
    fn backing(&self, wanted: Backing) -> Backing {
        let backing = wanted.on(self.release);
        if backing != wanted {
            tracing::info!(
                "layers are shown as loop devices: this kernel is not known to read files of images soundly"
            );
        }
        if backing == Backing::FilesDirectly && !snapshot::reads_files_soundly(self.release) {
            tracing::warn!(
                "snapshots.direct_reads: this kernel may use memory after it was freed when it reads files directly \
                 (CVE-2026-23224)"
            );
        }
        backing
    }

    fn form(&self, layers: Layers, backing: Backing) -> Result<LayerForm> {
        // Direct reads are checked only if they are requested.
        let backing = match backing {
            Backing::LoopDevices => Backing::LoopDevices,
            Backing::Files | Backing::FilesThroughMemory | Backing::FilesDirectly => Backing::Files,
        };
        let probe = || self.probe(Ability::Archives(backing));
        match layers {
            Layers::Directories => Ok(LayerForm::Directories),
            Layers::Archives => {
                unless_unknown(probe())
                    .context(|| "configuration: snapshots.layers: try \"auto\" or \"directories\"")?;
                Ok(LayerForm::Archives)
            }
            Layers::Auto => match probe() {
                Ok(()) => Ok(LayerForm::Archives),
                Err(error) if error.is(ErrorKind::Unimplemented) => {
                    tracing::info!("layers are unpacked to directories: {}", error.chain());
                    Ok(LayerForm::Directories)
                }
                Err(error) => {
                    // Every kernel supports directories.
                    let form = self.last.form.unwrap_or(LayerForm::Directories);
                    let said = form_word(form);
                    tracing::warn!("layers are kept as {said}, as before: {}", unknown(&error));
                    Ok(form)
                }
            },
        }
    }

    /// If the result differs from the last start, images are unpacked again; existing containers keep their
    /// snapshotter.
    fn snapshotter(&self) -> String {
        match self.probe(Ability::Overlays) {
            Ok(()) => Overlay::NAME.into(),
            Err(error) if error.is(ErrorKind::Unimplemented) => {
                tracing::warn!("each container gets a full copy of its image: {}", error.chain());
                Native::NAME.into()
            }
            Err(error) => {
                let last = self.last.snapshotter.clone().unwrap_or_else(|| Overlay::NAME.into());
                tracing::warn!("trees are made by {last}, as before: {}", unknown(&error));
                last
            }
        }
    }

    /// If fs-verity or direct reads are requested but not supported, the daemon must not silently do without.
    fn check(&self, wanted: &Request<'_>, form: LayerForm) -> Result<()> {
        let Request { verity, backing, .. } = *wanted;
        let directly = backing == Backing::FilesDirectly;
        let wishes = [
            (verity, "verity"),
            (directly, "direct_reads"),
            (backing == Backing::LoopDevices, "loop_devices"),
        ];
        for (is_wanted, key) in wishes {
            if is_wanted && form == LayerForm::Directories {
                let why = match wanted.layers {
                    Layers::Directories => {
                        "snapshots.layers has them unpacked: try \"auto\" there, or leave this out"
                    }
                    Layers::Auto | Layers::Archives => "this kernel mounts none: leave it out",
                };
                let message = format!(
                    "configuration: snapshots.{key} takes layers that are kept as archives, and {why}"
                );
                return Err(Error::failed_precondition(message));
            }
        }
        if verity {
            unless_unknown(self.probe(Ability::Verity)).context(|| {
                "configuration: snapshots.verity: leave it out, or have the root directory on a file system that \
                 was made for it"
            })?;
        }
        if directly {
            unless_unknown(self.probe(Ability::Archives(backing)))
                .context(|| "configuration: snapshots.direct_reads: try \"auto\" or \"never\"")?;
        }
        Ok(())
    }

    fn probe(&self, ability: Ability) -> Result<()> {
        (self.probe)(&self.trees, ability)
    }
}

fn probe(trees: &Path, ability: Ability) -> Result<()> {
    match ability {
        Ability::Archives(backing) => snapshot::probe(trees, backing),
        Ability::Verity => snapshot::probe_verity(trees),
        Ability::Overlays => snapshot::probe_overlay(trees),
    }
}

/// If a requested ability cannot be probed now, its use will show.
fn unless_unknown(probed: Result<()>) -> Result<()> {
    match probed {
        Err(error) if !error.is(ErrorKind::Unimplemented) => {
            tracing::warn!("{}", unknown(&error));
            Ok(())
        }
        probed => probed,
    }
}

fn unknown(error: &Error) -> String {
    format!("cannot probe the kernel's support for layers: {}", error.chain())
}

impl Found {
    fn parse(text: &str) -> Found {
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
        Found {
            form: match value(LAYERS) {
                Some(ARCHIVES) => Some(LayerForm::Archives),
                Some(DIRECTORIES) => Some(LayerForm::Directories),
                _ => None,
            },
            snapshotter: value(SNAPSHOTTER)
                .filter(|name| [Overlay::NAME, Native::NAME].contains(name))
                .map(str::to_owned),
        }
    }

    fn write(&self, root: &Path) -> Result<()> {
        let mut text = String::new();
        if let Some(form) = self.form {
            text += &format!("{LAYERS}{}\n", form_word(form));
        }
        if let Some(snapshotter) = &self.snapshotter {
            text += &format!("{SNAPSHOTTER}{snapshotter}\n");
        }
        let path = root.join(FILE);
        let written = replace(&path, text.as_bytes(), 0o644, Durable::Now);
        written.context(|| format!("write the results of the probes to {}", path.display()))
    }
}

fn form_word(form: LayerForm) -> &'static str {
    match form {
        LayerForm::Archives => ARCHIVES,
        LayerForm::Directories => DIRECTORIES,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probe_results_are_kept_and_a_truncated_file_is_ignored() {
        let root = tempfile::TempDir::new().unwrap();
        let found = Found { form: Some(LayerForm::Directories), snapshotter: Some(Native::NAME.to_owned()) };
        found.write(root.path()).unwrap();
        assert_eq!(Probes::new(root.path()).last, found);
        for (text, form, snapshotter) in [
            ("", None, None),
            ("layers=archives\n", Some(LayerForm::Archives), None),
            ("layers=arch", None, None),
            ("snapshotter=zfs\nlayers=directories\n", Some(LayerForm::Directories), None),
        ] {
            let found = Found::parse(text);
            assert_eq!((found.form, found.snapshotter.as_deref()), (form, snapshotter), "{text:?}");
        }
    }

    /// The probes cannot run: the directory of layers is a file.
    #[test]
    fn failed_probes_keep_the_last_results() {
        let root = tempfile::TempDir::new().unwrap();
        fs::create_dir(root.path().join("snapshots")).unwrap();
        fs::write(root.path().join("snapshots").join(Overlay::NAME), "").unwrap();
        let choose = |layers, backing, verity| {
            let wanted = Request { layers, backing, verity, snapshotter: AUTO };
            Probes::new(root.path()).choose(&wanted).unwrap()
        };
        let first = choose(Layers::Auto, Backing::Files, false);
        assert_eq!((first.options.form, first.snapshotter.as_str()), (LayerForm::Directories, Overlay::NAME));
        let before = Found { form: Some(LayerForm::Archives), snapshotter: Some(Native::NAME.to_owned()) };
        before.write(root.path()).unwrap();
        let later = choose(Layers::Auto, Backing::FilesDirectly, true);
        assert_eq!((later.options.form, later.snapshotter.as_str()), (LayerForm::Archives, Native::NAME));
        let forced = choose(Layers::Archives, Backing::LoopDevices, false);
        assert_eq!(forced.options.form, LayerForm::Archives);
        assert_eq!(Probes::new(root.path()).last, before);
    }

    /// The choice of a daemon with this kernel.
    fn choose(
        release: (u32, u32, u32),
        probe: fn(&Path, Ability) -> Result<()>,
        wanted: (Layers, Backing, bool),
    ) -> Result<snapshot::Options> {
        let root = tempfile::TempDir::new().unwrap();
        let (layers, backing, verity) = wanted;
        let wanted = Request { layers, backing, verity, snapshotter: AUTO };
        Probes { release, probe, ..Probes::new(root.path()) }.choose(&wanted).map(|choice| choice.options)
    }

    fn all(_: &Path, _: Ability) -> Result<()> {
        Ok(())
    }

    fn unless(cannot: bool) -> Result<()> {
        if cannot { Err(Error::unimplemented("not this kernel")) } else { Ok(()) }
    }

    fn no_archives(_: &Path, ability: Ability) -> Result<()> {
        unless(matches!(ability, Ability::Archives(_)))
    }

    fn no_direct_reads(_: &Path, ability: Ability) -> Result<()> {
        unless(ability == Ability::Archives(Backing::FilesDirectly))
    }

    fn no_verity(_: &Path, ability: Ability) -> Result<()> {
        unless(ability == Ability::Verity)
    }

    fn no_loop_devices(_: &Path, ability: Ability) -> Result<()> {
        unless(ability == Ability::Archives(Backing::LoopDevices))
    }

    const SOUND: (u32, u32, u32) = (7, 0, 0);
    const UNSOUND: (u32, u32, u32) = (6, 12, 43);

    #[test]
    fn refusals_of_layer_options_name_an_alternative() {
        use Backing::{Files, FilesDirectly, LoopDevices};
        for (probe, wanted, expected) in [
            (
                no_archives as fn(&Path, Ability) -> Result<()>,
                (Layers::Archives, Files, false),
                "snapshots.layers: try \"auto\" or \"directories\"",
            ),
            (no_archives, (Layers::Auto, Files, true), "snapshots.verity takes layers"),
            (no_archives, (Layers::Auto, Files, true), "this kernel mounts none: leave it out"),
            (no_archives, (Layers::Auto, FilesDirectly, false), "snapshots.direct_reads takes layers"),
            (no_archives, (Layers::Auto, LoopDevices, false), "snapshots.loop_devices takes layers"),
            (no_loop_devices, (Layers::Auto, LoopDevices, false), "this kernel mounts none: leave it out"),
            (all, (Layers::Directories, Files, true), "snapshots.verity takes layers"),
            (all, (Layers::Directories, FilesDirectly, false), "snapshots.direct_reads takes layers"),
            (all, (Layers::Directories, LoopDevices, false), "try \"auto\" there, or leave this out"),
            (no_verity, (Layers::Auto, Files, true), "snapshots.verity: leave it out, or have the root"),
            (
                no_direct_reads,
                (Layers::Auto, FilesDirectly, false),
                "direct_reads: try \"auto\" or \"never\"",
            ),
        ] {
            let refused = choose(SOUND, probe, wanted).map(|_| ()).unwrap_err().chain().to_string();
            assert!(
                refused.contains("configuration: ") && refused.contains(expected),
                "{wanted:?}: {refused}"
            );
        }
    }

    #[test]
    fn kernels_that_read_files_unsoundly_get_loop_devices_or_directories() {
        use Backing::{Files, FilesDirectly, FilesThroughMemory, LoopDevices};
        use LayerForm::{Archives, Directories};
        for (release, probe, backing, expected) in [
            (SOUND, all as fn(&Path, Ability) -> Result<()>, Files, (Archives, Files)),
            (SOUND, no_loop_devices, FilesThroughMemory, (Archives, FilesThroughMemory)),
            (UNSOUND, all, Files, (Archives, LoopDevices)),
            (UNSOUND, all, FilesThroughMemory, (Archives, LoopDevices)),
            (UNSOUND, all, FilesDirectly, (Archives, FilesDirectly)),
            (UNSOUND, no_loop_devices, Files, (Directories, LoopDevices)),
        ] {
            let options = choose(release, probe, (Layers::Auto, backing, false)).unwrap();
            assert_eq!((options.form, options.backing), expected, "{release:?} {backing:?}");
        }
    }
}
