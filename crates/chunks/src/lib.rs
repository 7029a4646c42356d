//! Content-defined chunks and manifests of what is like something seen before. No I/O.
