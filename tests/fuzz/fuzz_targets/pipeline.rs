//! Any bytes as a script of frames and changes, and the laws that must hold for it: the same that the property tests use
//! (`tests/golden`); they also play the corpus.
//!
//! ```text
//! cargo +nightly fuzz run --fuzz-dir tests/fuzz --features libfuzzer pipeline      find something
//! cargo run --manifest-path tests/fuzz/Cargo.toml -- tests/fuzz/corpus/pipeline    play files again, on stable
//! ```
//! A crash becomes a row of the golden table with a sentence that says what went wrong.
#![cfg_attr(feature = "libfuzzer", no_main)]

use forwarder_golden::laws;

#[cfg(feature = "libfuzzer")]
libfuzzer_sys::fuzz_target!(|script: &[u8]| laws::hold(script).expect("a law is broken"));

/// Plays every file, and every file of every directory, that is named.
#[cfg(not(feature = "libfuzzer"))]
fn main() -> std::io::Result<()> {
    for path in std::env::args_os().skip(1).map(std::path::PathBuf::from) {
        let files = match path.is_dir() {
            true => path.read_dir()?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?,
            false => vec![path],
        };
        for file in files {
            let held = laws::hold(&std::fs::read(&file)?);
            held.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            println!("{}: holds", file.display());
        }
    }
    Ok(())
}
