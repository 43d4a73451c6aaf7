//! `containerd.services.images.v1`

use api::grpc::encoded::{Encoded, Fields};
use api::grpc::images::images_server::Images;
use api::grpc::images::{
    CreateImageRequest, CreateImageResponse, DeleteImageRequest, GetImageRequest, GetImageResponse,
    Image as Wire, ListImagesRequest, ListImagesResponse, UpdateImageRequest, UpdateImageResponse,
};
use metadata::{Image, Metadata, StoredImage};
use tonic::{Request, Response, Status};
use types::{Filters, Timestamp};

use super::{Answer, blocking, caller, changed, convert, required, status, too_long};

pub(super) struct Service {
    pub(super) metadata: Metadata,
    /// Longest list response, in bytes.
    pub(super) list_limit: usize,
}

#[tonic::async_trait]
impl Images for Service {
    async fn get(&self, request: Request<GetImageRequest>) -> Answer<GetImageResponse> {
        let images = self.metadata.images(caller(&request)?);
        let image = blocking(move || images.get(&request.into_inner().name)).await?;
        Ok(Response::new(GetImageResponse { image: Some(wire(image)) }))
    }

    async fn list(&self, request: Request<ListImagesRequest>) -> Answer<Encoded<ListImagesResponse>> {
        let images = self.metadata.images(caller(&request)?);
        let filters = Filters::parse(&request.into_inner().filters).map_err(status)?;
        let limit = self.list_limit;
        let found = blocking(move || {
            let mut found = Encoded::up_to(limit);
            images.visit(&filters, |image| found.push(1, |to| encode(&image, to)).map_err(too_long))?;
            Ok(found)
        });
        found.await?.into_response().map_err(|error| status(too_long(error)))
    }

    async fn create(&self, request: Request<CreateImageRequest>) -> Answer<CreateImageResponse> {
        let images = self.metadata.images(caller(&request)?);
        let request = request.into_inner();
        let image = own(named(request.image)?)?;
        let epoch = request.source_date_epoch.map(convert::own_timestamp);
        let image = match images.ready_create(&image, epoch).await.map_err(status)? {
            Some(ready) => changed(ready).await?,
            None => blocking(move || images.create(image, epoch)).await?,
        };
        Ok(Response::new(CreateImageResponse { image: Some(wire(image)) }))
    }

    async fn update(&self, request: Request<UpdateImageRequest>) -> Answer<UpdateImageResponse> {
        let caller = caller(&request)?;
        let images = self.metadata.images(&caller);
        let request = request.into_inner();
        let paths = convert::paths(request.update_mask);
        let epoch = request.source_date_epoch.map(convert::own_timestamp);
        let mut asked = named(request.image)?;
        let touches_target = paths.is_empty() || paths.iter().any(|path| path == "target");
        // An image that is not there is told before a target that is none: clients then create it.
        let current = {
            let (images, name) = (self.metadata.images(&caller), asked.name.clone());
            blocking(move || images.get(&name)).await?
        };
        let image = if touches_target {
            own(asked)?
        } else {
            // A mask of labels or annotations may come without a target.
            let annotations = asked.target.take().map(|target| target.annotations).unwrap_or_default();
            let mut image = Image { labels: asked.labels, ..current };
            image.target.annotations = annotations;
            image
        };
        let image = blocking(move || images.update(&image, &paths, epoch)).await?;
        Ok(Response::new(UpdateImageResponse { image: Some(wire(image)) }))
    }

    async fn delete(&self, request: Request<DeleteImageRequest>) -> Answer<()> {
        let images = self.metadata.images(caller(&request)?);
        let request = request.into_inner();
        // Without a digest, the image is deleted whatever its target.
        let target = request.target.map(|target| target.digest).filter(|digest| !digest.is_empty());
        changed(images.ready_delete(request.name, target)).await?;
        if request.sync {
            let metadata = self.metadata.clone();
            blocking(move || metadata.collect()).await?;
        }
        Ok(Response::new(()))
    }
}

/// The request's image, which must have a name.
fn named(image: Option<Wire>) -> Result<Wire, Status> {
    let image = required(image, "image")?;
    if image.name.is_empty() {
        return Err(Status::invalid_argument("Image.Name required"));
    }
    Ok(image)
}

fn wire(image: Image) -> Wire {
    Wire {
        name: image.name,
        labels: image.labels,
        target: Some(convert::descriptor(&image.target)),
        created_at: convert::timestamp(image.created),
        updated_at: convert::timestamp(image.updated),
    }
}

/// Encodes what [`wire`] would convert, directly from a stored record, for lists.
fn encode(image: &StoredImage<'_>, to: &mut Fields<'_>) {
    to.text(1, &image.name);
    image.labels.bytes().for_each(|(key, value)| to.entry(2, key, value));
    to.message(3, |target| {
        target.text(1, image.media_type);
        target.text(2, image.digest);
        target.integer(3, convert::signed(image.size));
        image.annotations.bytes().for_each(|(key, value)| target.entry(5, key, value));
    });
    convert::encode_timestamp(image.created, 7, to);
    convert::encode_timestamp(image.updated, 8, to);
}

fn own(image: Wire) -> Result<Image, Status> {
    let target = required(image.target, "image target")?;
    Ok(Image {
        name: image.name,
        labels: image.labels,
        target: convert::own_descriptor(target).map_err(status)?,
        created: Timestamp::default(),
        updated: Timestamp::default(),
    })
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use prost::Message;
    use types::{Descriptor, Digest, Labels};

    use super::*;

    #[test]
    fn an_encoded_list_equals_its_encoded_messages() {
        let labels = |entries: &[(&str, &str)]| -> Labels {
            entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let mut target = Descriptor::new("application/x", Digest::of(b"x"), u64::from(u32::MAX) + 1);
        let image = |name: &str, target: &Descriptor, labels: Labels| Image {
            name: name.to_owned(),
            labels,
            target: target.clone(),
            created: Timestamp { seconds: -1, nanos: 999_999_999 },
            updated: Timestamp::default(),
        };
        let plain = image("n", &target, labels(&[]));
        target.annotations = labels(&[("", "v"), ("k", ""), ("long", &"x".repeat(300))]);
        let full = image("n/ä", &target, labels(&[("a", "b"), ("c", &"d".repeat(200))]));
        let (mut encoded, mut images) = (Encoded::<ListImagesResponse>::default(), Vec::new());
        for image in [plain, full] {
            let (annotations, own) = (
                convert::tests::Stored::of(&image.target.annotations),
                convert::tests::Stored::of(&image.labels),
            );
            let digest = image.target.digest.to_string();
            let stored = StoredImage {
                name: Cow::Borrowed(&image.name),
                created: image.created,
                updated: image.updated,
                media_type: &image.target.media_type,
                digest: &digest,
                size: image.target.size,
                annotations: annotations.labels(),
                labels: own.labels(),
            };
            encoded.push(1, |to| encode(&stored, to)).unwrap();
            images.push(wire(image));
        }
        assert_eq!(encoded.into_bytes(), ListImagesResponse { images }.encode_to_vec());
    }
}
