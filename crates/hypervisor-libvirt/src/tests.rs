//! Against real libvirtd. Needs root and the packages of [`testbed::LibvirtHost`], sasl2-bin and
//! libsasl2-modules.

mod qemu;
mod test_driver;
