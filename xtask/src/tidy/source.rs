//! Rust text taken apart: code without comments and literals, and comments alone, both with every line where it was.
//! It knows just enough of the lexer for that; it does not parse.

/// One file, taken apart. Both have its number of lines.
pub struct Source {
    /// Comments, strings and character literals blanked.
    pub code: String,
    /// All but comments blanked.
    pub comments: String,
}

/// What a stretch of text is.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Code,
    Comment,
    Literal,
}

impl Source {
    /// Takes a file apart.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let mut source = Self { code: String::new(), comments: String::new() };
        let mut rest = text;
        let mut previous = ' ';
        while !rest.is_empty() {
            let (kind, length) = stretch(rest, previous);
            let (piece, after) = rest.split_at(length);
            source.push(piece, kind);
            previous = piece.chars().next_back().unwrap_or(' ');
            rest = after;
        }
        source
    }

    fn push(&mut self, piece: &str, kind: Kind) {
        for c in piece.chars() {
            let blank = if c == '\n' { '\n' } else { ' ' };
            self.code.push(if kind == Kind::Code { c } else { blank });
            self.comments.push(if kind == Kind::Comment { c } else { blank });
        }
    }

    /// The words of the code, that is identifiers and keywords, each with its line, counted from 1.
    pub fn words(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code.lines().enumerate().flat_map(|(index, line)| words(line).map(move |word| (index + 1, word)))
    }

    /// How many lines stand before the unit tests that end the file.
    #[must_use]
    pub fn lines_before_tests(&self) -> usize {
        let lines: Vec<_> = self.code.lines().map(str::trim).collect();
        let module = |line: &str| line.starts_with("mod ") || line.starts_with("pub mod ");
        (0..lines.len())
            .find(|&at| lines[at] == "#[cfg(test)]" && lines[at + 1..].iter().take(3).any(|line| module(line)))
            .unwrap_or(lines.len())
    }
}

/// The identifiers and keywords in a line.
pub fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// Kind and length in bytes of what the text starts with; code comes a character at a time.
fn stretch(rest: &str, previous: char) -> (Kind, usize) {
    let first = rest.chars().next().map_or(0, char::len_utf8);
    if rest.starts_with("//") {
        return (Kind::Comment, rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return (Kind::Comment, block_comment(rest));
    }
    if rest.starts_with('"') {
        return (Kind::Literal, quoted(rest));
    }
    let in_word = previous.is_alphanumeric() || previous == '_';
    if let Some(length) = raw_string(rest).filter(|_| !in_word) {
        return (Kind::Literal, length);
    }
    if let Some(length) = character(rest).filter(|_| !in_word || previous == 'b') {
        return (Kind::Literal, length);
    }
    (Kind::Code, first)
}

/// The length of a block comment, which may hold others.
fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        let here = &rest[at..];
        if here.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if here.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += here.chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

/// The length of a string with escapes.
fn quoted(rest: &str) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// The length of a raw string with its prefix, if the text starts with one.
fn raw_string(rest: &str) -> Option<usize> {
    let prefix = ["br", "cr", "r"].into_iter().find(|prefix| rest.starts_with(prefix))?.len();
    let hashes = rest[prefix..].bytes().take_while(|&b| b == b'#').count();
    let open = prefix + hashes;
    rest[open..].strip_prefix('"')?;
    let close = format!("\"{}", "#".repeat(hashes));
    let body = &rest[open + 1..];
    Some(body.find(&close).map_or(rest.len(), |at| open + 1 + at + close.len()))
}

/// The length of a character literal, if the text starts with one and not with a lifetime.
fn character(rest: &str) -> Option<usize> {
    let body = rest.strip_prefix('\'')?;
    let mut chars = body.char_indices();
    match chars.next()?.1 {
        '\\' => {
            let escape = chars.next()?.1;
            let from = 1 + escape.len_utf8();
            Some(1 + from + body[from..].find('\'')? + 1)
        }
        '\'' => None,
        _ => {
            let (at, close) = chars.next()?;
            (close == '\'').then_some(1 + at + 1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> String {
        Source::new(text).code.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn comments_and_literals_are_no_code() {
        assert_eq!(code("a(); // unsafe\nb();"), "a(); b();");
        assert_eq!(code("a /* x /* unsafe */ y */ b"), "a b");
        assert_eq!(code(r#"f("unsafe \" unsafe", g)"#), "f( , g)");
        assert_eq!(code(r##"f(r#"unsafe " unsafe"#, g)"##), "f( , g)");
        assert_eq!(code("f(b\"unsafe\\\\\", c)"), "f(b , c)");
    }

    #[test]
    fn characters_are_literals_and_lifetimes_are_not() {
        assert_eq!(code(r#"if c == '"' { unsafe {} }"#), "if c == { unsafe {} }");
        assert_eq!(code(r"match c { '\'' | '\u{1f}' | '\\' => a, b'\n' => b }"), "match c { | | => a, b => b }");
        assert_eq!(code("fn f<'a>(x: &'a str, y: &'static u8)"), "fn f<'a>(x: &'a str, y: &'static u8)");
    }

    #[test]
    fn a_word_that_ends_in_r_opens_no_raw_string() {
        assert_eq!(code("for\"x\" unsafe"), "for unsafe");
        assert_eq!(code("r#type unsafe"), "r#type unsafe");
    }

    #[test]
    fn every_line_stays_where_it_was() {
        let source = Source::new("a\n/* b\nc */ d\n\"e\nf\" g");
        assert_eq!(source.words().collect::<Vec<_>>(), [(1, "a"), (3, "d"), (5, "g")]);
        assert_eq!(source.comments.lines().map(str::trim).collect::<Vec<_>>(), ["", "/* b", "c */", "", ""]);
    }

    #[test]
    fn tests_at_the_end_do_not_count() {
        assert_eq!(Source::new("a\nb\n#[cfg(test)]\nmod tests {\n}\n").lines_before_tests(), 2);
        assert_eq!(Source::new("a\n#[cfg(test)]\nuse b;\nc\nd\ne\nf\n").lines_before_tests(), 7);
    }
}
