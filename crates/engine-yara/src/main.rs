//! `lazaret-engine-yara`, see [`engine_yara::main`].

fn main() -> std::process::ExitCode {
    engine_yara::main()
}
