//! `containerd.services.images.v1`

use api::grpc::images::images_server::Images;
use api::grpc::images::{
    CreateImageRequest, CreateImageResponse, DeleteImageRequest, GetImageRequest, GetImageResponse,
    Image as Wire, ListImagesRequest, ListImagesResponse, UpdateImageRequest, UpdateImageResponse,
};
use metadata::{Image, Metadata};
use tonic::{Request, Response, Status};
use types::{Filters, Timestamp};

use super::{Answer, blocking, caller, convert, required, status};

pub(super) struct Service(pub(super) Metadata);

#[tonic::async_trait]
impl Images for Service {
    async fn get(&self, request: Request<GetImageRequest>) -> Answer<GetImageResponse> {
        let images = self.0.images(caller(&request)?);
        let image = blocking(move || images.get(&request.into_inner().name)).await?;
        Ok(Response::new(GetImageResponse { image: Some(wire(image)) }))
    }

    async fn list(&self, request: Request<ListImagesRequest>) -> Answer<ListImagesResponse> {
        let images = self.0.images(caller(&request)?);
        let filters = Filters::parse(&request.into_inner().filters).map_err(status)?;
        let found = blocking(move || images.list(&filters)).await?;
        Ok(Response::new(ListImagesResponse { images: found.into_iter().map(wire).collect() }))
    }

    async fn create(&self, request: Request<CreateImageRequest>) -> Answer<CreateImageResponse> {
        let images = self.0.images(caller(&request)?);
        let request = request.into_inner();
        let image = own(named(request.image)?)?;
        let epoch = request.source_date_epoch.map(convert::own_timestamp);
        let image = blocking(move || images.create(image, epoch)).await?;
        Ok(Response::new(CreateImageResponse { image: Some(wire(image)) }))
    }

    async fn update(&self, request: Request<UpdateImageRequest>) -> Answer<UpdateImageResponse> {
        let caller = caller(&request)?;
        let images = self.0.images(&caller);
        let request = request.into_inner();
        let paths = convert::paths(request.update_mask);
        let epoch = request.source_date_epoch.map(convert::own_timestamp);
        let mut asked = named(request.image)?;
        let touches_target = paths.is_empty() || paths.iter().any(|path| path == "target");
        let image = if touches_target {
            own(asked)?
        } else {
            // A mask of labels comes without a target, one of annotations with nothing else in it.
            let current = {
                let (images, name) = (self.0.images(&caller), asked.name.clone());
                blocking(move || images.get(&name)).await?
            };
            let annotations = asked.target.take().map(|target| target.annotations).unwrap_or_default();
            let mut image = Image { labels: asked.labels, ..current };
            image.target.annotations = annotations;
            image
        };
        let image = blocking(move || images.update(&image, &paths, epoch)).await?;
        Ok(Response::new(UpdateImageResponse { image: Some(wire(image)) }))
    }

    async fn delete(&self, request: Request<DeleteImageRequest>) -> Answer<()> {
        let images = self.0.images(caller(&request)?);
        let request = request.into_inner();
        let target = request.target.map(|target| target.digest.parse()).transpose().map_err(status)?;
        let metadata = self.0.clone();
        let deleted = blocking(move || {
            images.delete(&request.name, target.as_ref())?;
            if request.sync {
                metadata.collect()?;
            }
            Ok(())
        });
        deleted.await.map(Response::new)
    }
}

/// An image of a request, which must have a name.
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
