//! The SHA-2 family (FIPS 180-4), computed by one of two crates.
//!
//! With the feature `ring` it is `ring`, whose assembly for processors without SHA instructions (Intel's servers before
//! Ice Lake) hashes 1.8 times as fast as `sha2`; with these instructions both are equal. Without the feature it is
//! `sha2`, for the shim: it hashes no more than a name, and `ring` needs a C compiler for the shim's target.

pub(super) use implementation::State;

#[cfg(feature = "ring")]
mod implementation {
    use ring::digest::{Context, SHA256, SHA384, SHA512};

    use super::super::Algorithm;

    #[derive(Clone)]
    pub(in super::super) struct State(Context);

    impl State {
        pub(in super::super) fn new(algorithm: Algorithm) -> State {
            State(Context::new(match algorithm {
                Algorithm::Sha256 => &SHA256,
                Algorithm::Sha384 => &SHA384,
                Algorithm::Sha512 => &SHA512,
            }))
        }

        pub(in super::super) fn update(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }

        pub(in super::super) fn finish(self) -> impl AsRef<[u8]> {
            self.0.finish()
        }
    }
}

#[cfg(not(feature = "ring"))]
mod implementation {
    use sha2::{Digest as _, Sha256, Sha384, Sha512};

    use super::super::Algorithm;

    #[derive(Clone)]
    pub(in super::super) enum State {
        Sha256(Sha256),
        Sha384(Sha384),
        Sha512(Sha512),
    }

    impl State {
        pub(in super::super) fn new(algorithm: Algorithm) -> State {
            match algorithm {
                Algorithm::Sha256 => State::Sha256(Sha256::new()),
                Algorithm::Sha384 => State::Sha384(Sha384::new()),
                Algorithm::Sha512 => State::Sha512(Sha512::new()),
            }
        }

        pub(in super::super) fn update(&mut self, bytes: &[u8]) {
            match self {
                State::Sha256(state) => state.update(bytes),
                State::Sha384(state) => state.update(bytes),
                State::Sha512(state) => state.update(bytes),
            }
        }

        pub(in super::super) fn finish(self) -> impl AsRef<[u8]> {
            match self {
                State::Sha256(state) => state.finalize().to_vec(),
                State::Sha384(state) => state.finalize().to_vec(),
                State::Sha512(state) => state.finalize().to_vec(),
            }
        }
    }
}
