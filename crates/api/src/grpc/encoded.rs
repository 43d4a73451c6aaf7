//! Messages that are encoded directly from records, without a struct in between. A list of many records is large, and
//! each copy of it costs time and memory.
//!
//! ```text
//! record ──▶ Fields ──▶ chunk  ──▶ codec ──▶ answer
//!                   └─▶ chunks ───(Chunks)─▶ answer: a long list bypasses the codec, which would copy it
//! ```
//!
//! The encoding is the one that `prost` writes (<https://protobuf.dev/programming-guides/encoding/>): fields in the
//! order of their numbers, fields with default values omitted.

use std::fmt;
use std::marker::PhantomData;

use bytes::{BufMut as _, Bytes};
use prost::Message;
use prost::encoding::{WireType, encode_varint, encoded_len_varint};
use tonic::codec::{Codec, EncodeBuf, Encoder};
use tonic::{Response, Status};
use tonic_prost::ProstDecoder;

use super::MESSAGE_BYTES_MAX;

/// The size, in bytes, from which a chunk is full. The allocator returns blocks of this size to the kernel when freed.
const CHUNK_LEN: usize = 1 << 20;

/// An encoded message `M`.
pub struct Encoded<M> {
    chunks: Vec<Vec<u8>>,
    /// The length of the last element's length prefix, in bytes: the next element is probably about as long.
    prefix_len: usize,
    limit: usize,
    message: PhantomData<fn() -> M>,
}

impl<M> Default for Encoded<M> {
    fn default() -> Encoded<M> {
        Encoded::up_to(MESSAGE_BYTES_MAX)
    }
}

impl<M> Encoded<M> {
    /// An empty message, which may grow to `limit` bytes.
    pub fn up_to(limit: usize) -> Encoded<M> {
        Encoded { chunks: Vec::new(), prefix_len: 1, limit, message: PhantomData }
    }

    /// Adds an element to the repeated field `number`: a message whose fields `write` writes. Fails with [`TooLong`]
    /// once the limit is passed.
    pub fn push(&mut self, number: u32, write: impl FnOnce(&mut Fields<'_>)) -> Result<(), TooLong> {
        let is_full = self.chunks.last().is_none_or(|chunk| chunk.len() >= CHUNK_LEN);
        if is_full && self.len() > self.limit {
            return Err(TooLong { limit: self.limit });
        }
        if is_full {
            // Most answers are short, so the first chunk starts small and grows.
            let capacity = if self.chunks.is_empty() { 0 } else { CHUNK_LEN + CHUNK_LEN / 16 };
            self.chunks.push(Vec::with_capacity(capacity));
        }
        if let Some(chunk) = self.chunks.last_mut() {
            self.prefix_len = Fields(chunk).message_with(self.prefix_len, number, write);
        }
        Ok(())
    }

    /// The length in bytes.
    pub fn len(&self) -> usize {
        self.chunks.iter().map(Vec::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The server's response. A long message is moved as [`Chunks`] into the response's extensions, and the codec gets
    /// an empty one: the server's transport layer replaces the body by the chunks.
    pub fn into_response(self) -> Result<Response<Encoded<M>>, TooLong> {
        if self.chunks.len() < 2 {
            return Ok(Response::new(self));
        }
        let too_long = TooLong { limit: self.limit };
        let len = u32::try_from(self.len()).map_err(|_| too_long)?;
        if self.len() > self.limit {
            return Err(too_long);
        }
        let chunks = Chunks { len, bytes: self.chunks.into_iter().map(Bytes::from).collect() };
        let mut response = Response::new(Encoded::up_to(self.limit));
        response.extensions_mut().insert(chunks);
        Ok(response)
    }

    /// The message in one buffer.
    pub fn into_bytes(self) -> Vec<u8> {
        self.chunks.concat()
    }
}

/// A long encoded message, in pieces.
#[derive(Clone, Debug)]
pub struct Chunks {
    len: u32,
    bytes: Vec<Bytes>,
}

impl Chunks {
    /// The data frames of the HTTP body: gRPC's prefix of an uncompressed message, then the pieces.
    pub fn into_frames(self) -> impl Iterator<Item = Bytes> {
        let [a, b, c, d] = self.len.to_be_bytes();
        std::iter::once(Bytes::from(vec![0, a, b, c, d])).chain(self.bytes)
    }
}

/// The error of an answer that exceeds the limit, found before all of it is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong {
    limit: usize,
}

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the answer is longer than the {} bytes that a message may have", self.limit)
    }
}

impl std::error::Error for TooLong {}

/// Writes the fields of a message.
pub struct Fields<'a>(&'a mut Vec<u8>);

impl Fields<'_> {
    /// Writes a string.
    pub fn text(&mut self, number: u32, text: &str) {
        self.bytes(number, text.as_bytes());
    }

    pub fn bytes(&mut self, number: u32, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.key(number, WireType::LengthDelimited);
            varint(bytes.len() as u64, self.0);
            self.0.extend_from_slice(bytes);
        }
    }

    /// Writes an int32 or int64.
    pub fn integer(&mut self, number: u32, value: i64) {
        if value != 0 {
            self.key(number, WireType::Varint);
            varint(value as u64, self.0);
        }
    }

    /// Writes a message, even if it has no fields.
    pub fn message(&mut self, number: u32, write: impl FnOnce(&mut Fields<'_>)) {
        // Most messages are short, and their length takes one byte.
        self.message_with(1, number, write);
    }

    /// As [`Fields::message`], with `kept` bytes reserved for the length prefix. If the length takes more or fewer, the
    /// message is moved. Returns how many it took.
    fn message_with(&mut self, kept: usize, number: u32, write: impl FnOnce(&mut Fields<'_>)) -> usize {
        self.key(number, WireType::LengthDelimited);
        let start = self.0.len();
        self.0.resize(start + kept, 0);
        write(&mut Fields(self.0));
        let end = self.0.len();
        let len = (end - start - kept) as u64;
        let prefix_len = encoded_len_varint(len);
        if prefix_len > kept {
            self.0.resize(end + prefix_len - kept, 0);
        }
        if prefix_len != kept {
            self.0.copy_within(start + kept..end, start + prefix_len);
            self.0.truncate(end + prefix_len - kept);
        }
        encode_varint(len, &mut &mut self.0[start..start + prefix_len]);
        prefix_len
    }

    fn key(&mut self, number: u32, kind: WireType) {
        varint(u64::from(number << 3 | kind as u32), self.0);
    }

    /// Writes an entry of a map of strings, which must be UTF-8.
    pub fn entry(&mut self, number: u32, key: &[u8], value: &[u8]) {
        self.message(number, |entry| {
            entry.bytes(1, key);
            entry.bytes(2, value);
        });
    }
}

/// Faster than `prost`'s for any buffer, which takes twice as long: a list has a million numbers, most of them short.
fn varint(mut value: u64, to: &mut Vec<u8>) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

/// The codec of a server whose answers are [`Encoded`].
pub struct EncodedCodec<M, U>(PhantomData<fn() -> (M, U)>);

impl<M, U> Default for EncodedCodec<M, U> {
    fn default() -> EncodedCodec<M, U> {
        EncodedCodec(PhantomData)
    }
}

impl<M: 'static, U: Message + Default + 'static> Codec for EncodedCodec<M, U> {
    type Encode = Encoded<M>;
    type Decode = U;
    type Encoder = EncodedEncoder<M>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> EncodedEncoder<M> {
        EncodedEncoder(PhantomData)
    }

    fn decoder(&mut self) -> ProstDecoder<U> {
        ProstDecoder::default()
    }
}

/// Copies an encoded message into the answer's buffer.
pub struct EncodedEncoder<M>(PhantomData<fn() -> M>);

impl<M> Encoder for EncodedEncoder<M> {
    type Item = Encoded<M>;
    type Error = Status;

    fn encode(&mut self, message: Encoded<M>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.reserve(message.len());
        message.chunks.into_iter().for_each(|chunk| to.put_slice(&chunk));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::images::{Image, ListImagesResponse};

    #[test]
    fn encoded_lists_are_those_of_prost() {
        let name = |len: usize| "n".repeat(len);
        let mut encoded = Encoded::<ListImagesResponse>::default();
        let mut images = Vec::new();
        for len in [0, 1, 120, 130, 20_000, CHUNK_LEN, CHUNK_LEN * 2, 3] {
            encoded.push(1, |image| image.text(1, &name(len))).unwrap();
            images.push(Image { name: name(len), ..Image::default() });
        }
        assert!(encoded.chunks.len() > 2, "chunks are used");
        assert_eq!(encoded.into_bytes(), ListImagesResponse { images }.encode_to_vec());
    }

    #[test]
    fn a_long_answer_bypasses_the_codec() {
        let encoded = |texts: &[&str], limit: usize| {
            let mut encoded = Encoded::<ListImagesResponse>::up_to(limit);
            texts.iter().for_each(|text| encoded.push(1, |image| image.text(1, text)).unwrap());
            encoded
        };
        let short = encoded(&["n"], 100).into_response().unwrap();
        assert!(short.extensions().get::<Chunks>().is_none() && !short.get_ref().is_empty());
        let text = "x".repeat(CHUNK_LEN);
        let (texts, limit) = ([text.as_str(), "y", &text], 4 * CHUNK_LEN);
        let whole = encoded(&texts, limit).into_bytes();
        let mut long = encoded(&texts, limit).into_response().unwrap();
        assert!(long.get_ref().is_empty());
        let frames: Vec<Bytes> = long.extensions_mut().remove::<Chunks>().unwrap().into_frames().collect();
        let prefix = [&[0][..], &u32::try_from(whole.len()).unwrap().to_be_bytes()].concat();
        assert_eq!(frames.concat(), [prefix, whole.clone()].concat());
        assert!(encoded(&texts, whole.len()).into_response().is_ok());
        assert!(encoded(&texts, whole.len() - 1).into_response().is_err());
    }

    #[test]
    fn an_answer_beyond_the_limit_is_not_encoded() {
        let mut encoded = Encoded::<ListImagesResponse>::default();
        let text = "x".repeat(CHUNK_LEN);
        let pushed = (0..100).take_while(|_| encoded.push(1, |image| image.text(1, &text)).is_ok()).count();
        assert!((16..=18).contains(&pushed), "{pushed} MiB were taken");
    }
}
