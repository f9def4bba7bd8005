//! Lines as Parquet: the columns that AWS's flow logs have, by name and type.
//!
//! AWS, "Flow log files": names with underscores; 32-bit, 64-bit and string columns; compressed with gzip. Every column may
//! be without a value, which is what `-` says in text.

use crate::record::{Format, Kind};
use parquet::basic::{Compression, ConvertedType, GzipLevel, Repetition, Type as Physical};
use parquet::column::writer::ColumnWriter;
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::Type;
use std::sync::Arc;

/// Records in one group of rows.
const GROUP: usize = 128 << 10;

/// A Parquet file of lines of this format. Lines that have other fields are left out and counted.
///
/// # Errors
/// When the library refuses.
pub fn file(format: &Format, lines: &[u8]) -> Result<(Vec<u8>, u64), ParquetError> {
    let properties = WriterProperties::builder()
        .set_compression(Compression::GZIP(GzipLevel::default()))
        .set_created_by(concat!("forwarder ", env!("CARGO_PKG_VERSION")).to_owned())
        .build();
    let mut writer = SerializedFileWriter::new(Vec::new(), schema(format)?, Arc::new(properties))?;
    let rows: Vec<Vec<&str>> = lines
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| std::str::from_utf8(line).unwrap_or_default().split(' ').collect())
        .collect();
    let (good, bad): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row: &Vec<_>| row.len() == format.fields().len());
    for rows in good.chunks(GROUP) {
        let mut group = writer.next_row_group()?;
        let mut at = 0;
        while let Some(mut column) = group.next_column()? {
            let values = rows.iter().map(|row| row[at]);
            write(column.untyped(), values)?;
            column.close()?;
            at += 1;
        }
        group.close()?;
    }
    Ok((writer.into_inner()?, bad.len() as u64))
}

fn schema(format: &Format) -> Result<Arc<Type>, ParquetError> {
    let columns = format.fields().iter().map(|field| {
        let (physical, converted) = match field.kind() {
            Kind::String => (Physical::BYTE_ARRAY, ConvertedType::UTF8),
            Kind::Int32 => (Physical::INT32, ConvertedType::INT_32),
            Kind::Int64 => (Physical::INT64, ConvertedType::INT_64),
        };
        let name = field.name().replace('-', "_");
        let column = Type::primitive_type_builder(&name, physical);
        column.with_repetition(Repetition::OPTIONAL).with_converted_type(converted).build().map(Arc::new)
    });
    let columns = columns.collect::<Result<_, _>>()?;
    Type::group_type_builder("flow_log").with_fields(columns).build().map(Arc::new)
}

/// A column's values; what is no value of its type, as `-` is not, is left empty.
fn write<'a>(column: &mut ColumnWriter<'_>, texts: impl Iterator<Item = &'a str>) -> Result<(), ParquetError> {
    match column {
        ColumnWriter::Int32ColumnWriter(column) => {
            let (values, levels) = values(texts, |text| text.parse().ok());
            column.write_batch(&values, Some(&levels), None).map(drop)
        }
        ColumnWriter::Int64ColumnWriter(column) => {
            let (values, levels) = values(texts, |text| text.parse().ok());
            column.write_batch(&values, Some(&levels), None).map(drop)
        }
        ColumnWriter::ByteArrayColumnWriter(column) => {
            let text = |text: &str| (text != "-").then(|| ByteArray::from(text));
            let (values, levels) = values(texts, text);
            column.write_batch(&values, Some(&levels), None).map(drop)
        }
        _ => Err(ParquetError::General("a column of a type that no field has".to_owned())),
    }
}

/// The values that are there, and for each row whether it has one (its definition level).
fn values<'a, T>(texts: impl Iterator<Item = &'a str>, read: impl Fn(&str) -> Option<T>) -> (Vec<T>, Vec<i16>) {
    let (mut values, mut levels) = (Vec::new(), Vec::new());
    for text in texts {
        let value = read(text);
        levels.push(i16::from(value.is_some()));
        values.extend(value);
    }
    (values, levels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::file::reader::{FileReader, SerializedFileReader};

    #[test]
    fn a_file_has_every_line_in_typed_columns() {
        let format = Format::parse("${interface-id} ${srcport} ${bytes} ${action}").expect("a format");
        let lines = "eni-1 443 18446744073 ACCEPT\neni-1 - - -\ntorn\n";
        let (file, bad) = file(&format, lines.as_bytes()).expect("a file");
        assert_eq!(bad, 1);
        let reader = SerializedFileReader::new(bytes::Bytes::from(file)).expect("a Parquet file");
        let rows: Vec<_> =
            reader.get_row_iter(None).expect("rows").map(|row| row.expect("a row").to_string()).collect();
        assert_eq!(
            rows,
            [
                "{interface_id: \"eni-1\", srcport: 443, bytes: 18446744073, action: \"ACCEPT\"}",
                "{interface_id: \"eni-1\", srcport: null, bytes: null, action: null}",
            ]
        );
    }
}
