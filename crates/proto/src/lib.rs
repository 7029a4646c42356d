//! The wire contract: messages generated from `proto/`, their conversions to the model, and the
//! framing. No I/O. Whatever comes in is hostile until a conversion has accepted it.

mod convert;
mod frame;
mod machine;

/// Messages generated from `proto/lazaret/v1/*.proto` by `./x gen`; documented there.
#[expect(
    missing_docs,
    clippy::all,
    reason = "generated code; its documentation is the .proto files"
)]
pub mod v1 {
    include!("generated/lazaret.v1.rs");
}

pub use convert::ConvertError;
pub use frame::{FRAME_MAX_BYTES, FrameError, HEADER_BYTES, decode, encode, encode_into, split};

/// ALPN of the link between agents and appliances, version 1.
pub const ALPN_LINK: &[u8] = b"lazaret/1";
/// ALPN of enrolment, version 1.
pub const ALPN_ENROL: &[u8] = b"lazaret-enrol/1";
/// ALPN of the streams between appliances and the controller, version 1.
pub const ALPN_FLEET: &[u8] = b"lazaret-fleet/1";
/// The protocol versions this build speaks, lowest and highest.
pub const VERSIONS: (u32, u32) = (1, 1);
/// Most bytes in one `Data` frame, so that an urgent frame never waits behind more.
pub const DATA_MAX_BYTES: usize = 64 * 1024;
/// Most bytes of content that one `Data` frame stands for, compressed.
pub const DATA_PLAIN_MAX_BYTES: usize = 128 * 1024;
/// Most bytes of one `Manifest`.
pub const MANIFEST_MAX_BYTES: usize = 896 * 1024;
/// Most bytes of the head that goes with a `FilterReport`; of longer content exactly so many.
pub const REPORT_HEAD_BYTES: usize = 512;
/// Most bytes of occurrences in one `FilterReport`.
pub const REPORT_MAX_BYTES: usize = 64 * 1024;
/// Most bytes of one `FilterPart`.
pub const FILTER_PART_MAX_BYTES: usize = 256 * 1024;
/// Most ranges in one `PartialStep`.
pub const ASK_RANGES_MAX: usize = 4096;
/// Most bytes in one packet between an appliance and an engine process.
pub const ENGINE_PACKET_MAX_BYTES: usize = 192 * 1024;
