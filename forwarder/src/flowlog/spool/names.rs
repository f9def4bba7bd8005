//! Names of segments: `NUMBER-TAG.log`, or `NUMBER+DONE-TAG.log` when some of it was sent.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Closed segments, the oldest first.
pub(super) fn segments(directory: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in directory.read_dir()? {
        let path = entry?.path();
        let number = path.file_name().and_then(|name| name.to_str()).and_then(|name| number(name).0);
        if let (Some(number), Some("log")) = (number, path.extension().and_then(|extension| extension.to_str())) {
            found.push((number, path));
        }
    }
    found.sort();
    Ok(found)
}

/// The number in a segment's name, and how many of its records have been dealt with.
pub(super) fn number(name: &str) -> (Option<u64>, usize) {
    let number = name.split('-').next().unwrap_or_default();
    let (number, done) = number.split_once('+').unwrap_or((number, "0"));
    (number.parse().ok(), done.parse().unwrap_or(0))
}

/// The tag in a segment's name.
pub(super) fn tag(path: &Path) -> &str {
    let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
    name.split_once('-').map_or(name, |(_, tag)| tag)
}

/// Has a segment's name say how far it was sent, for whoever goes on with it.
pub(super) fn note_done(path: &mut PathBuf, done: usize) -> io::Result<()> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let (number, _) = number(name);
    let noted = path.with_file_name(format!("{:016}+{done}-{}.log", number.unwrap_or(0), tag(path)));
    fs::rename(&*path, &noted)?;
    *path = noted;
    Ok(())
}
