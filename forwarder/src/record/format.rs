//! A format, and records as lines of it: single spaces, `-` for what does not apply, as AWS writes and parsers expect.

use super::value::of_interface;
use super::{Field, Interface, Interfaces, Line, OWN, Record, Span, Value};
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::IpAddr;

/// The fields of every line, in order; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Format {
    fields: Vec<Field>,
    version: u32,
}

impl Default for Format {
    fn default() -> Self {
        Self::of(Field::DEFAULT.to_vec())
    }
}

/// Why a text is no format. Completes a sentence that begins with the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Nothing in it.
    #[error("is empty; write \"default\" or fields such as \"${{srcaddr}} ${{dstaddr}} ${{bytes}}\"")]
    Empty,
    /// Not a field in braces.
    #[error("has `{0}`, which is not a field; write each as ${{name}}, with single spaces between them")]
    NotAField(String),
    /// A field that does not exist.
    #[error("has ${{{0}}}, which is not known; see \"Flow logs\" in the README for all fields")]
    Unknown(String),
    /// A field twice.
    #[error("has ${{{0}}} twice; write every field once")]
    Twice(String),
}

impl Format {
    fn of(fields: Vec<Field>) -> Self {
        // A format of own fields only counts as version 2, the first there is.
        let version = fields.iter().map(|field| field.version()).filter(|version| *version != OWN).max().unwrap_or(2);
        Self { fields, version }
    }

    /// Reads `default`, or `${field} ${field} …`.
    ///
    /// # Errors
    /// When it is neither.
    pub fn parse(text: &str) -> Result<Self, FormatError> {
        if text == "default" {
            return Ok(Self::default());
        }
        let mut fields = Vec::new();
        for word in text.split_whitespace() {
            let name = word.strip_prefix("${").and_then(|word| word.strip_suffix('}'));
            let name = name.ok_or_else(|| FormatError::NotAField(word.to_owned()))?;
            let field = Field::named(name).ok_or_else(|| FormatError::Unknown(name.to_owned()))?;
            if fields.contains(&field) {
                return Err(FormatError::Twice(name.to_owned()));
            }
            fields.push(field);
        }
        if fields.is_empty() { Err(FormatError::Empty) } else { Ok(Self::of(fields)) }
    }

    /// The fields.
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// As the config has it.
    pub fn text(&self) -> String {
        if self.fields == Field::DEFAULT {
            return "default".to_owned();
        }
        let mut text = String::new();
        for field in &self.fields {
            let space = if text.is_empty() { "" } else { " " };
            let _ = write!(text, "{space}${{{}}}", field.name());
        }
        text
    }

    /// The line that names the fields, as AWS puts it first into files for S3.
    pub fn header(&self) -> String {
        let mut line = self.fields.iter().map(|field| field.name()).collect::<Vec<_>>().join(" ");
        line.push('\n');
        line
    }

    /// The format that a header line, with or without its end, names the fields of. `None`: it is no header.
    pub fn of_header(line: &str) -> Option<Self> {
        line.trim_end_matches('\n').split(' ').map(Field::named).collect::<Option<_>>().map(Self::of)
    }

    /// Appends a record of an interface as a line, its end included.
    pub fn write(&self, out: &mut Vec<u8>, record: &Record<'_>, interface: &Interface, names: &Interfaces) {
        let (span, status) = match record {
            Record::Flow(window, direction) => {
                return self.write_line(out, &Line { window, direction: *direction, interface, names });
            }
            Record::NoData(span) => (*span, "NODATA"),
            Record::SkipData(span) => (*span, "SKIPDATA"),
        };
        self.write_fields(out, |out, field| self.status_field(out, field, interface, (span, status)));
    }

    /// Appends a record of packets as a line, its end included.
    pub fn write_line(&self, out: &mut Vec<u8>, line: &Line<'_>) {
        self.write_fields(out, |out, field| match field {
            Field::Version => number(out, self.version),
            field => put(out, line.value(field)),
        });
    }

    fn write_fields(&self, out: &mut Vec<u8>, write: impl Fn(&mut Vec<u8>, Field)) {
        for (at, field) in self.fields.iter().enumerate() {
            if at > 0 {
                out.push(b' ');
            }
            write(out, *field);
        }
        out.push(b'\n');
    }

    fn status_field(&self, out: &mut Vec<u8>, field: Field, interface: &Interface, (span, status): (Span, &str)) {
        match field {
            Field::Version => number(out, self.version),
            Field::Start => number(out, span.start),
            Field::End => number(out, span.end),
            Field::LogStatus => out.extend_from_slice(status.as_bytes()),
            other => put(out, of_interface(interface, other)),
        }
    }

    /// Appends a record of packets as a JSON object in a line: numbers as numbers, and what does not apply as null.
    pub fn write_json(&self, out: &mut Vec<u8>, line: &Line<'_>) {
        let mut object = serde_json::Map::new();
        for field in &self.fields {
            let value = match line.value(*field) {
                _ if *field == Field::Version => self.version.into(),
                Value::None => serde_json::Value::Null,
                Value::Number(number) => number.into(),
                Value::Address(address) => address.to_string().into(),
                Value::Text(text) => text.into(),
            };
            object.insert(field.name().to_owned(), value);
        }
        serde_json::to_writer(&mut *out, &object).expect("plain data is JSON, and memory takes it");
        out.push(b'\n');
    }
}

fn put(out: &mut Vec<u8>, value: Value<'_>) {
    match value {
        Value::None => out.push(b'-'),
        Value::Number(value) => number(out, value),
        Value::Address(value) => address(out, value),
        Value::Text(value) => text(out, value),
    }
}

/// A text; spaces would begin another field.
fn text(out: &mut Vec<u8>, text: &str) {
    out.extend(text.bytes().map(|byte| if byte.is_ascii_whitespace() { b'_' } else { byte }));
}

fn number(out: &mut Vec<u8>, number: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

fn address(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            number(out, a);
            for byte in [b, c, d] {
                out.push(b'.');
                number(out, byte);
            }
        }
        IpAddr::V6(address) => {
            let _ = write!(out, "{address}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Direction, NOWHERE, Tuple, Window};
    use forwarder_ebpf::verdict::Drop;
    use std::sync::Arc;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn tuple(source: &str, destination: &str, ports: (u16, u16)) -> Tuple {
        Tuple { source: ip(source), destination: ip(destination), source_port: ports.0, destination_port: ports.1 }
    }

    /// The network of AWS's example: one interface, through which all goes twice.
    fn gateway() -> Interfaces {
        let interface = Interface {
            name: "ens5".to_owned(),
            ifindex: 2,
            address4: Some(ip("10.0.0.220")),
            account_id: "123456789010".to_owned(),
            interface_id: "eni-1235b8ca123456789".to_owned(),
            ..Interface::default()
        };
        Interfaces {
            list: vec![Interface::default(), interface],
            rules: Arc::new(vec![String::new(), "web out".to_owned()]),
        }
    }

    fn window(arrived: Tuple, left: Tuple) -> Window {
        Window {
            arrived,
            left,
            ingress: 1,
            egress: 1,
            protocol: 6,
            packets: 20,
            bytes: 4249,
            first_ms: 1_418_530_010_999,
            last_ms: 1_418_530_070_001,
            ..Window::default()
        }
    }

    fn lines(format: &str, window: &Window) -> Vec<String> {
        let (format, names) = (Format::parse(format).expect("a format"), gateway());
        let line = |(interface, direction)| {
            let mut out = Vec::new();
            let interface = names.at(interface).expect("an interface");
            format.write(&mut out, &Record::Flow(window, direction), interface, &names);
            String::from_utf8(out).expect("text")
        };
        window.records().map(line).collect()
    }

    #[test]
    fn the_default_is_awss_first_example_in_every_byte() {
        let tuple = tuple("172.31.16.139", "172.31.16.21", (20_641, 22));
        let window = Window { egress: NOWHERE, ..window(tuple, tuple) };
        let lines = lines("default", &window);
        // dstaddr is the interface's own address whatever the packet says.
        let expected = "2 123456789010 eni-1235b8ca123456789 172.31.16.139 10.0.0.220 20641 22 6 20 4249 1418530010 \
                        1418530070 ACCEPT OK\n";
        assert_eq!(lines, [expected]);
    }

    #[test]
    fn a_translated_connection_gives_the_four_records_of_awss_example() {
        const FORMAT: &str =
            "${interface-id} ${srcaddr} ${dstaddr} ${pkt-srcaddr} ${pkt-dstaddr} ${flow-direction} ${version}";
        let out =
            window(tuple("10.0.1.5", "203.0.113.5", (40_000, 443)), tuple("10.0.0.220", "203.0.113.5", (40_000, 443)));
        let back =
            window(tuple("203.0.113.5", "10.0.0.220", (443, 40_000)), tuple("203.0.113.5", "10.0.1.5", (443, 40_000)));
        let lines: Vec<_> = [out, back].iter().flat_map(|window| lines(FORMAT, window)).collect();
        let eni = "eni-1235b8ca123456789";
        assert_eq!(
            lines,
            [
                format!("{eni} 10.0.1.5 10.0.0.220 10.0.1.5 203.0.113.5 ingress 5\n"),
                format!("{eni} 10.0.0.220 203.0.113.5 10.0.0.220 203.0.113.5 egress 5\n"),
                format!("{eni} 203.0.113.5 10.0.0.220 203.0.113.5 10.0.0.220 ingress 5\n"),
                format!("{eni} 10.0.0.220 10.0.1.5 203.0.113.5 10.0.1.5 egress 5\n"),
            ]
        );
    }

    #[test]
    fn own_fields_join_both_sides_of_the_translation() {
        const FORMAT: &str = "${orig-srcaddr} ${orig-srcport} ${nat-srcaddr} ${nat-srcport} ${nat-dstaddr} \
                              ${nat-dstport} ${rule-name} ${drop-reason} ${flow-duration} ${rtt-src} ${rtt-dst} \
                              ${interface-name} ${initiated-by}";
        let window = Window {
            rule: 1,
            begun_ms: 1_418_530_000_001,
            rtt_destination_us: 1500,
            originator: true,
            ..window(tuple("10.0.1.5", "203.0.113.5", (40_000, 443)), tuple("10.0.0.220", "203.0.113.5", (1024, 443)))
        };
        let expected = "10.0.1.5 40000 10.0.0.220 1024 203.0.113.5 443 web_out - 70000 - 1500 ens5 source\n";
        assert_eq!(lines(FORMAT, &window), [expected, expected]);
    }

    #[test]
    fn what_is_refused_has_one_record_with_its_reason() {
        let tuple = tuple("2001:db8::1", "2001:db8::2", (1, 2));
        let window = Window { refused: Some(Drop::Policy), egress: NOWHERE, ..window(tuple, tuple) };
        let lines = lines("${srcaddr} ${dstaddr} ${type} ${action} ${drop-reason} ${nat-srcaddr}", &window);
        assert_eq!(lines, ["2001:db8::1 2001:db8::2 IPv6 REJECT policy -\n"]);
    }

    #[test]
    fn lines_without_data_have_awss_shape() {
        let (names, mut out) = (gateway(), Vec::new());
        let (span, interface) = (Span { start: 1_431_280_876, end: 1_431_280_934 }, &names.list[1]);
        Format::default().write(&mut out, &Record::NoData(span), interface, &names);
        Format::default().write(&mut out, &Record::SkipData(span), interface, &names);
        let line = "2 123456789010 eni-1235b8ca123456789 - - - - - - - 1431280876 1431280934 -";
        assert_eq!(String::from_utf8(out).expect("text"), format!("{line} NODATA\n{line} SKIPDATA\n"));
    }

    #[test]
    fn what_is_not_known_is_a_dash_and_the_account_unknown() {
        let mut out = Vec::new();
        let format = Format::parse("${account-id} ${vpc-id} ${traffic-path} ${ecs-task-id}").expect("a format");
        let window = Window::default();
        format.write(&mut out, &Record::Flow(&window, Direction::Ingress), &Interface::default(), &gateway());
        assert_eq!(String::from_utf8(out).expect("text"), "unknown - - -\n");
    }

    #[test]
    fn formats_are_read_and_refused() {
        let format = Format::parse("${version} ${az-id}  ${rtt-src}").expect("a format");
        assert_eq!((format.version, format.text().as_str()), (4, "${version} ${az-id} ${rtt-src}"));
        assert_eq!(format.header(), "version az-id rtt-src\n");
        assert_eq!(Format::of_header(&format.header()), Some(format));
        assert_eq!(Format::of_header("version az-id 7"), None);
        assert_eq!(Format::of_header(""), None);
        assert_eq!(Format::parse(&Format::default().text()), Ok(Format::default()));
        assert_eq!(Format::parse(" "), Err(FormatError::Empty));
        assert_eq!(Format::parse("srcaddr"), Err(FormatError::NotAField("srcaddr".to_owned())));
        assert_eq!(Format::parse("${src}"), Err(FormatError::Unknown("src".to_owned())));
        assert_eq!(Format::parse("${end} ${end}"), Err(FormatError::Twice("end".to_owned())));
    }
}
