//! Image records: names for descriptors.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

use kv::{Read, Reader, StoredLabels, Table, Value, Writer};
use types::{
    Descriptor, Digest, Error, FieldPath, Fields, Filters, Labels, Namespace, Result, Timestamp, filter,
    label,
};

use crate::event::Event;
use crate::gc::graph::Node;
use crate::gc::label as gc_label;
use crate::lease::{self, Resource};
use crate::mask;
use crate::store::{Caller, Change, Metadata, Ready};

pub(crate) const IMAGES: Table<(Namespace, String), Record> = Table::new("images");
const VERSION: u8 = 1;

#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    pub name: String,
    pub labels: Labels,
    /// Media type, digest, size and annotations are stored, other fields are not.
    pub target: Descriptor,
    pub created: Timestamp,
    pub updated: Timestamp,
}

impl Image {
    /// A copy of the image under another name, with a life of its own: without expiry and back references.
    pub fn renamed(mut self, name: String) -> Image {
        self.labels.retain(|key, _| !gc_label::is_bound(key));
        Image { name, ..self }
    }
}

/// The stored form of an image. Its name is in the key.
pub(crate) struct Record {
    pub(crate) labels: Labels,
    pub(crate) target: Descriptor,
    created: Timestamp,
    updated: Timestamp,
}

impl Value for Record {
    fn encode(&self, to: &mut Writer) {
        to.byte(VERSION);
        to.timestamp(self.created);
        to.timestamp(self.updated);
        to.text(&self.target.media_type);
        to.digest(&self.target.digest);
        to.number(self.target.size);
        to.labels(&self.target.annotations);
        to.labels(&self.labels);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Record> {
        StoredImage::read(Cow::default(), from)?.to_record()
    }
}

/// An image as it is stored, without copies: for listing many of them.
#[derive(Clone, Debug)]
pub struct StoredImage<'a> {
    pub name: Cow<'a, str>,
    pub created: Timestamp,
    pub updated: Timestamp,
    pub media_type: &'a str,
    pub digest: &'a str,
    /// The size of the target, in bytes.
    pub size: u64,
    pub annotations: StoredLabels<'a>,
    pub labels: StoredLabels<'a>,
}

impl<'a> StoredImage<'a> {
    fn read<'r: 'a>(name: Cow<'a, str>, from: &mut Reader<'r>) -> Result<StoredImage<'a>> {
        from.version(VERSION)?;
        Ok(StoredImage {
            name,
            created: from.timestamp()?,
            updated: from.timestamp()?,
            media_type: from.text()?,
            digest: from.text()?,
            size: from.number()?,
            annotations: from.stored_labels()?,
            labels: from.stored_labels()?,
        })
    }

    fn to_record(&self) -> Result<Record> {
        let damaged = |error| Error::data_loss("the record of an image is damaged").with_source(error);
        let digest = self.digest.parse().map_err(damaged)?;
        let mut target = Descriptor::new(self.media_type, digest, self.size);
        target.annotations = self.annotations.to_labels();
        let (created, updated) = (self.created, self.updated);
        Ok(Record { labels: self.labels.to_labels(), target, created, updated })
    }
}

impl Record {
    pub(crate) fn references(&self) -> Vec<Node> {
        let mut nodes = gc_label::references(&self.labels);
        nodes.push(self.ground());
        nodes
    }

    /// The object that a flat lease keeps together with this one.
    pub(crate) fn ground(&self) -> Node {
        Node::Content(self.target.digest.clone())
    }

    fn named(self, name: String) -> Image {
        let Record { labels, target, created, updated } = self;
        Image { name, labels, target, created, updated }
    }
}

impl Fields for StoredImage<'_> {
    fn field(&self, path: &FieldPath) -> Option<Cow<'_, str>> {
        match (path.head(), path.second()) {
            ("name", _) => filter::present(&self.name),
            ("target", "digest") => Some(Cow::Borrowed(self.digest)),
            ("target", "mediatype") => filter::present(self.media_type),
            ("labels", _) => self.labels.get(path.rest()).map(Cow::Borrowed),
            ("annotations", _) => self.annotations.get(path.rest()).map(Cow::Borrowed),
            _ => None,
        }
    }
}

#[derive(Clone)]
pub struct Images {
    store: Metadata,
    caller: Caller,
}

impl Images {
    pub(crate) fn new(store: Metadata, caller: Caller) -> Images {
        Images { store, caller }
    }

    pub fn get(&self, name: &str) -> Result<Image> {
        self.store.0.read(|tx| self.find(tx, name))
    }

    /// The images that match, by name.
    pub fn list(&self, filters: &Filters) -> Result<Vec<Image>> {
        let mut found = Vec::new();
        self.visit(filters, |image| {
            found.push(image.to_record()?.named(image.name.into_owned()));
            Ok(())
        })?;
        Ok(found)
    }

    /// Calls `visit` with the images that match, by name, until it fails.
    pub fn visit(
        &self,
        filters: &Filters,
        mut visit: impl FnMut(StoredImage<'_>) -> Result<()> + Send,
    ) -> Result<()> {
        let namespace = &self.caller.namespace;
        let mut look = |name: Cow<'_, str>, mut value: Reader<'_>| {
            let image = StoredImage::read(name, &mut value)?;
            if filters.matches(&image) { visit(image) } else { Ok(()) }
        };
        self.store.0.read(|tx| match filters.values_of("name") {
            Some(names) => names.into_iter().try_for_each(|name| {
                IMAGES.get_stored(tx, (namespace, name), |value| look(name.into(), value))
            }),
            None => IMAGES.scan_stored(tx, (namespace,), |mut key, value| look(key.text()?, value)),
        })
    }

    /// Adds an image, if the gate admits it. `AlreadyExists` if the name is taken. Sets its times, to
    /// `source_date_epoch` if given.
    ///
    /// An image with an expiry (`containerd.io/gc.expire`) joins the caller's lease.
    pub fn create(&self, image: Image, source_date_epoch: Option<Timestamp>) -> Result<Image> {
        let image = checked(image)?;
        let namespace = &self.caller.namespace;
        if self.store.0.read(|tx| IMAGES.contains(tx, (namespace, &image.name)))? {
            return Err(taken(&image.name));
        }
        self.store.0.gate.admit(&image.name, &image.target)?;
        self.store.0.change(|change| self.create_in(change, image, source_date_epoch.map(same_times)))
    }

    /// As [`Images::create`], for an image of another store: it keeps its times.
    pub fn take_over(&self, image: Image) -> Result<Image> {
        let image = checked(image)?;
        self.store.0.gate.admit(&image.name, &image.target)?;
        let times = (image.created, image.updated);
        self.store.0.change(|change| self.create_in(change, image, Some(times)))
    }

    /// Adds an image, or replaces target and labels of the one with its name, if the gate admits it: what containerd
    /// does for a pull or a tag.
    pub fn assign(&self, image: Image) -> Result<Image> {
        self.assign_then(image, |_| Ok(()))
    }

    /// As [`Images::assign`], and ends the caller's lease in the same change. `NotFound` if the lease has ended
    /// already.
    pub fn assign_last(&self, image: Image) -> Result<Image> {
        self.assign_then(image, |change| {
            let Some(lease) = &self.caller.lease else { return Ok(()) };
            lease::require(change.tx, &self.caller.namespace, lease)?;
            lease::delete(change, &self.caller.namespace, lease).map(drop)
        })
    }

    fn assign_then(
        &self,
        image: Image,
        then: impl FnOnce(&mut Change<'_, '_>) -> Result<()>,
    ) -> Result<Image> {
        let image = checked(image)?;
        self.store.0.gate.admit(&image.name, &image.target)?;
        self.store.0.change(|change| {
            let assigned = match IMAGES.contains(change.tx, (&self.caller.namespace, &image.name))? {
                true => self.update_in(change, &image, &[], None)?,
                false => self.create_in(change, image, None)?,
            };
            then(change).map(|()| assigned)
        })
    }

    /// As [`Images::create`], as a change that can be queued; `None` if the gate must be asked, which may take long.
    pub async fn ready_create(
        &self,
        image: &Image,
        source_date_epoch: Option<Timestamp>,
    ) -> Result<Option<Ready<Image>>> {
        let (images, image) = (self.clone(), checked(image.clone())?);
        if !self.store.0.gate.is_open(&image.name).await {
            return Ok(None);
        }
        Ok(Some(Ready::new(&self.store, move |change| {
            images.create_in(change, image, source_date_epoch.map(same_times))
        })))
    }

    fn create_in(
        &self,
        change: &mut Change<'_, '_>,
        image: Image,
        times: Option<(Timestamp, Timestamp)>,
    ) -> Result<Image> {
        let namespace = &self.caller.namespace;
        if IMAGES.contains(change.tx, (namespace, &image.name))? {
            return Err(taken(&image.name));
        }
        self.admit(change, &image)?;
        let (created, updated) = times.unwrap_or(same_times(change.now));
        let image = self.put(change.tx, Image { created, updated, ..image })?;
        change.expires(gc_label::expiry(&image.labels));
        change.touch(namespace, Node::Image(image.name.clone()));
        change.settle();
        let event = Event::ImageCreated { name: image.name.clone(), labels: image.labels.clone() };
        change.emit(namespace, event);
        Ok(image)
    }

    /// Replaces the fields that `paths` name (`labels`, `labels.<key>`, `target`, `annotations`,
    /// `annotations.<key>`), or all without paths; a new target only if the gate admits it. Returns the updated
    /// image. One with an expiry joins the caller's lease.
    pub fn update(
        &self,
        update: &Image,
        paths: &[String],
        source_date_epoch: Option<Timestamp>,
    ) -> Result<Image> {
        if paths.is_empty() || paths.iter().any(|path| path == "target") {
            self.get(&update.name)?;
            self.store.0.gate.admit(&update.name, &update.target)?;
        }
        self.store.0.change(|change| self.update_in(change, update, paths, source_date_epoch))
    }

    fn update_in(
        &self,
        change: &mut Change<'_, '_>,
        update: &Image,
        paths: &[String],
        source_date_epoch: Option<Timestamp>,
    ) -> Result<Image> {
        let namespace = &self.caller.namespace;
        let current = self.find(change.tx, &update.name)?;
        let mut image = current.clone();
        if paths.is_empty() {
            image = update.clone();
        }
        for path in paths {
            match mask::split(path) {
                ("labels", key) => mask::merge(&mut image.labels, &update.labels, key),
                ("annotations", key) => {
                    mask::merge(&mut image.target.annotations, &update.target.annotations, key);
                }
                ("target", None) => image.target = update.target.clone(),
                _ => return Err(mask::refused(path, &format!("image {:?}", update.name))),
            }
        }
        let updated = source_date_epoch.unwrap_or(change.now);
        let image = checked(Image { created: current.created, updated, ..image })?;
        self.admit(change, &image)?;
        let image = self.put(change.tx, image)?;
        change.expires(gc_label::expiry(&image.labels));
        if image.target.digest != current.target.digest {
            change.free();
        }
        change.touch(namespace, Node::Image(image.name.clone()));
        change.settle();
        let event = Event::ImageUpdated { name: image.name.clone(), labels: image.labels.clone() };
        change.emit(namespace, event);
        Ok(image)
    }

    /// Deletes an image. `NotFound` if there is none of that name, or if its target is not `target`.
    pub fn delete(&self, name: &str, target: Option<&Digest>) -> Result<()> {
        let target = target.map(Digest::to_string);
        self.store.0.change(|change| self.delete_in(change, name, target.as_deref()))
    }

    /// As [`Images::delete`], as a change that can be queued. `target` is unparsed: an invalid digest matches no
    /// image.
    pub fn ready_delete(&self, name: String, target: Option<String>) -> Ready<()> {
        let images = self.clone();
        Ready::new(&self.store, move |change| images.delete_in(change, &name, target.as_deref()))
    }

    fn delete_in(&self, change: &mut Change<'_, '_>, name: &str, target: Option<&str>) -> Result<()> {
        let namespace = &self.caller.namespace;
        let image = self.find(change.tx, name)?;
        if let Some(target) = target
            && target != image.target.digest.to_string()
        {
            return Err(Error::not_found(format!(
                "image {name:?} has target {}, not {target}",
                image.target.digest
            )));
        }
        IMAGES.delete(change.tx, (namespace, name))?;
        lease::remove(change, &self.caller, &Resource::Image(name.to_owned()))?;
        change.free();
        change.emit(namespace, Event::ImageDeleted { name: name.to_owned() });
        Ok(())
    }

    /// Only an image with an expiry needs the caller's lease.
    fn admit(&self, change: &mut Change<'_, '_>, image: &Image) -> Result<()> {
        let expires = image.labels.contains_key(label::gc::EXPIRE);
        change.admit(&self.caller, expires.then(|| Resource::Image(image.name.clone())))
    }

    fn find(&self, tx: &impl Read, name: &str) -> Result<Image> {
        match IMAGES.get(tx, (&self.caller.namespace, name))? {
            Some(record) => Ok(record.named(name.to_owned())),
            None => Err(Error::not_found(format!("image {name:?}"))),
        }
    }

    fn put(&self, tx: &mut kv::WriteTxn<'_>, image: Image) -> Result<Image> {
        let Image { name, labels, target, created, updated } = image;
        let record = Record { labels, target, created, updated };
        IMAGES.put(tx, (&self.caller.namespace, &name), &record)?;
        Ok(record.named(name))
    }
}

/// Creation and update time of a new record.
fn same_times(time: Timestamp) -> (Timestamp, Timestamp) {
    (time, time)
}

/// The first image that is not among `known`, or has another target there.
pub(crate) fn first_unknown(
    tx: &impl Read,
    namespace: &Namespace,
    known: &BTreeMap<String, Digest>,
) -> Result<Option<String>> {
    let mut found = None;
    IMAGES.scan(tx, (namespace,), |(_, name), record| {
        if known.get(&name) == Some(&record.target.digest) {
            return Ok(ControlFlow::Continue(()));
        }
        found = Some(name);
        Ok(ControlFlow::Break(()))
    })?;
    Ok(found)
}

fn taken(name: &str) -> Error {
    Error::already_exists(format!("image {name:?}"))
}

fn checked(mut image: Image) -> Result<Image> {
    let refuse = |why: &str| Err(Error::invalid_argument(why));
    if image.name.is_empty() {
        return refuse("image name must not be empty");
    }
    if image.target.size == 0 {
        return refuse("target.Size must be greater than zero");
    }
    if image.target.media_type.is_empty() {
        return refuse("target.MediaType must be set");
    }
    label::check(&image.labels).map_err(|error| error.context("image.Labels"))?;
    if image.target.annotations.contains_key("") {
        return refuse("target.Annotations must have keys");
    }
    image.labels = mask::without_empty(image.labels);
    image.target.annotations = mask::without_empty(image.target.annotations);
    Ok(image)
}
