//! Lists that are decoded lazily: the daemon's answer stays encoded, and each element is decoded when the caller
//! reads it.
//!
//! A list of 100,000 images is 13 MB on the wire. Decoded at once into messages with their own maps and strings it
//! takes a hundred MB more, and the decoding takes longer than the rest of the call. A caller that handles one
//! element at a time holds one in memory.

use std::marker::PhantomData;

use api::grpc::MESSAGE_BYTES_MAX;
use api::grpc::containers::{Container, ListContainersRequest};
use api::grpc::images::{Image, ListImagesRequest};
use bytes::{Buf, Bytes};
use http::uri::PathAndQuery;
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Request, Status};

use crate::Channel;

/// The number of the repeated field that holds the elements, in every list response.
const PARTS: u32 = 1;

/// A request whose response is a message with one repeated field.
pub trait List: Message + 'static {
    type Part: Message + Default + 'static;
    /// The gRPC method, as an HTTP path.
    const PATH: &'static str;
}

impl List for ListImagesRequest {
    type Part = Image;
    const PATH: &'static str = "/containerd.services.images.v1.Images/List";
}

impl List for ListContainersRequest {
    type Part = Container;
    const PATH: &'static str = "/containerd.services.containers.v1.Containers/List";
}

/// Calls the method and returns the encoded list.
pub async fn list<L: List>(channel: Channel, request: Request<L>) -> Result<Parts<L::Part>, Status> {
    let mut client = tonic::client::Grpc::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let codec = PartsCodec::<L>(PhantomData);
    client.unary(request, PathAndQuery::from_static(L::PATH), codec).await.map(tonic::Response::into_inner)
}

/// An encoded list, read as an iterator. Each element is decoded when it is asked for.
pub struct Parts<T> {
    bytes: Bytes,
    part: PhantomData<fn() -> T>,
}

impl<T> Parts<T> {
    fn new(bytes: Bytes) -> Parts<T> {
        Parts { bytes, part: PhantomData }
    }
}

impl<T: Message + Default> Iterator for Parts<T> {
    type Item = Result<T, Status>;

    /// Decodes the next element. After a malformed one the iterator ends.
    fn next(&mut self) -> Option<Result<T, Status>> {
        let next = next_part(&mut self.bytes);
        let next = next.and_then(|part| part.map(|part| T::decode(part).map_err(broken)).transpose());
        if next.is_err() {
            self.bytes.clear();
        }
        next.transpose()
    }
}

fn broken(why: impl std::fmt::Display) -> Status {
    Status::internal(format!("a broken list: {why}"))
}

fn next_part(bytes: &mut Bytes) -> Result<Option<Bytes>, Status> {
    while !bytes.is_empty() {
        let (number, kind) = decode_key(bytes).map_err(broken)?;
        if number != PARTS || kind != WireType::LengthDelimited {
            // A field that a newer daemon added.
            skip_field(kind, number, bytes, DecodeContext::default()).map_err(broken)?;
            continue;
        }
        let len = usize::try_from(decode_varint(bytes).map_err(broken)?).unwrap_or(usize::MAX);
        if len > bytes.len() {
            return Err(broken("it ends in the middle of a part"));
        }
        return Ok(Some(bytes.split_to(len)));
    }
    Ok(None)
}

struct PartsCodec<L>(PhantomData<fn() -> L>);

impl<L: List> Codec for PartsCodec<L> {
    type Encode = L;
    type Decode = Parts<L::Part>;
    type Encoder = PartsCodec<L>;
    type Decoder = PartsCodec<L>;

    fn encoder(&mut self) -> PartsCodec<L> {
        PartsCodec(PhantomData)
    }

    fn decoder(&mut self) -> PartsCodec<L> {
        PartsCodec(PhantomData)
    }
}

impl<L: List> Encoder for PartsCodec<L> {
    type Item = L;
    type Error = Status;

    fn encode(&mut self, question: L, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        question.encode(to).map_err(|error| Status::internal(error.to_string()))
    }
}

impl<L: List> Decoder for PartsCodec<L> {
    type Item = Parts<L::Part>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Parts<L::Part>>, Status> {
        let len = from.remaining();
        Ok(Some(Parts::new(from.copy_to_bytes(len))))
    }
}

#[cfg(test)]
mod tests {
    use api::grpc::images::ListImagesResponse;

    use super::*;

    fn images(count: usize) -> Vec<Image> {
        let labels = [("a".to_owned(), "b".to_owned())];
        let image = |at| Image { name: format!("n/{at}"), labels: labels.clone().into(), ..Image::default() };
        (0..count).map(image).collect()
    }

    #[test]
    fn lazy_lists_have_the_elements_of_the_whole_message() {
        for count in [0, 1, 300] {
            let whole = ListImagesResponse { images: images(count) };
            let parts = Parts::<Image>::new(whole.encode_to_vec().into());
            assert_eq!(parts.collect::<Result<Vec<_>, _>>().unwrap(), whole.images);
        }
    }

    #[test]
    fn a_list_skips_unknown_fields_and_ends_at_malformed_ones() {
        // Field 2, a varint.
        let mut bytes = vec![0x10, 0x7];
        bytes.extend(ListImagesResponse { images: images(2) }.encode_to_vec());
        bytes.extend([0x10, 0x7]);
        assert_eq!(Parts::<Image>::new(bytes.clone().into()).filter(Result::is_ok).count(), 2);
        for end in [&[0x0a, 0x7f][..], &[0x0a], &[0x0a, 1, 0xff], &[0x07]] {
            let broken = [&bytes, end].concat();
            let mut parts = Parts::<Image>::new(broken.into());
            assert_eq!(parts.by_ref().take_while(Result::is_ok).count(), 2, "{end:?}");
            assert!(parts.next().is_none());
        }
    }
}
