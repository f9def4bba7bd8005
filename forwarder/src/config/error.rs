//! What is wrong with a config, in one line: file, line, key, value, what is allowed, what to do.

use std::fmt;
use std::io;
use std::path::PathBuf;

pub(super) type Result<T> = std::result::Result<T, ConfigError>;

/// A line of a config file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file, as it was named.
    pub file: String,
    /// Counts from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// Why a config is refused. It is refused whole: nothing of it is used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the config {}; name a file that this user may read with --config", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The text is not TOML.
    #[error("{place}: `{text}` is not TOML: {problem}; correct this line")]
    Syntax {
        /// Where.
        place: Place,
        /// The line as it stands there.
        text: String,
        /// What the parser says.
        problem: String,
    },
    /// A key that this version does not know.
    #[error("{place}: {key}: unknown key, allowed here: {allowed}; correct or remove it")]
    UnknownKey {
        /// Where.
        place: Place,
        /// The key with its sections.
        key: String,
        /// All keys of this section.
        allowed: String,
    },
    /// A key that must be there is not.
    #[error("{place}: {key} is missing; write {example}")]
    MissingKey {
        /// Where its section begins.
        place: Place,
        /// The key with its sections.
        key: String,
        /// What to write.
        example: String,
    },
    /// A value that cannot be.
    #[error("{place}: {key} = {value}: {problem}")]
    Value {
        /// Where.
        place: Place,
        /// The key with its sections.
        key: String,
        /// The value as it stands there, cut to one line.
        value: String,
        /// What is allowed and what to do.
        problem: String,
    },
}
