//! One module for each container: `is_…` says whether some bytes are one, `open…` gives the
//! walker its members.

pub(crate) mod ar;
pub(crate) mod cab;
pub(crate) mod compressed;
pub(crate) mod cpio;
pub(crate) mod iso;
pub(crate) mod mime;
mod mime_header;
pub(crate) mod ole;
pub(crate) mod pdf;
mod pdf_dict;
pub(crate) mod rpm;
mod rpm_header;
pub(crate) mod sevenz;
mod sevenz_header;
pub(crate) mod tar;
pub(crate) mod zip;
