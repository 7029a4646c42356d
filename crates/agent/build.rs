//! The agent's program is small: functions of equal machine code are there once.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // The linker of this toolchain (LLD). Nothing of ours compares addresses of functions.
    println!("cargo::rustc-link-arg-bins=-Wl,--icf=all");
}
