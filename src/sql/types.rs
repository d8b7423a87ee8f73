//! Flink's SQL types and Arrow's, both ways, and which of them pass into which without a written `CAST`.

use crate::error::{Checked, Fault};
use arrow_schema::{DataType, Field, FieldRef, Fields, TimeUnit};
use datafusion_common::DataFusionError;
use datafusion_expr::planner::TypePlanner;
use sqlparser::ast::{self, ArrayElemTypeDef, CharacterLength, ExactNumberInfo, TimezoneInfo};
use sqlparser::keywords::Keyword;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::Token;
use std::sync::Arc;

/// The one session time zone.
const ZONE: &str = "UTC";
/// Of a VARCHAR in Flink: this one is a STRING.
const VARCHAR_LENGTH_MAX: u64 = 2_147_483_647;

pub(crate) fn utf8() -> DataType {
    DataType::Utf8
}

pub(crate) fn timestamp(precision: u64, zoned: bool) -> Checked<DataType> {
    let unit = match precision {
        0..=3 => TimeUnit::Millisecond,
        4..=6 => TimeUnit::Microsecond,
        7..=9 => TimeUnit::Nanosecond,
        _ => return Err(Fault::new(format!("the precision of a timestamp is 0 to 9, not {precision}"))),
    };
    Ok(DataType::Timestamp(unit, zoned.then(|| ZONE.into())))
}

pub(crate) fn decimal(precision: u64, scale: i64) -> Checked<DataType> {
    match (u8::try_from(precision), i8::try_from(scale)) {
        (Ok(precision @ 1..=38), Ok(scale)) if scale >= 0 && scale as u8 <= precision => Ok(DataType::Decimal128(precision, scale)),
        _ => Err(Fault::new(format!("DECIMAL({precision}, {scale}) is not a type")).hint("precision 1 to 38, scale 0 to precision")),
    }
}

pub(crate) fn list_of(item: DataType, nullable: bool) -> DataType {
    DataType::List(Arc::new(Field::new_list_field(item, nullable)))
}

fn map_of(key: DataType, value: DataType, nullable: bool) -> DataType {
    let entries = Fields::from(vec![Field::new("key", key, false), Field::new("value", value, nullable)]);
    DataType::Map(Arc::new(Field::new("entries", DataType::Struct(entries), false)), false)
}

/// Reads a type of a `CREATE TABLE`, with its `NULL` or `NOT NULL`: (type, nullable).
pub(crate) fn parse_type(parser: &mut Parser) -> Checked<(DataType, bool)> {
    let token = parser.next_token();
    let Token::Word(word) = &token.token else {
        return Err(Fault::new(format!("expected a type, found {}", token.token)).at(token.span));
    };
    let name = word.value.to_uppercase();
    let mut data_type = parse_named_type(parser, &name).map_err(|fault| fault.or_at(token.span))?;
    let mut nullable = parse_nullability(parser)?;
    while is_word(&parser.peek_token().token, "ARRAY") {
        parser.next_token();
        data_type = list_of(data_type, nullable);
        nullable = parse_nullability(parser)?;
    }
    Ok((data_type, nullable))
}

fn parse_nullability(parser: &mut Parser) -> Checked<bool> {
    if parser.parse_keywords(&[Keyword::NOT, Keyword::NULL]) {
        return Ok(false);
    }
    let _ = parser.parse_keyword(Keyword::NULL);
    Ok(true)
}

fn parse_named_type(parser: &mut Parser, name: &str) -> Checked<DataType> {
    Ok(match name {
        "BOOLEAN" => DataType::Boolean,
        "TINYINT" => DataType::Int8,
        "SMALLINT" => DataType::Int16,
        "INT" | "INTEGER" => DataType::Int32,
        "BIGINT" => DataType::Int64,
        "FLOAT" => DataType::Float32,
        "DOUBLE" => {
            let _ = parser.parse_keyword(Keyword::PRECISION);
            DataType::Float64
        }
        "DECIMAL" | "DEC" | "NUMERIC" => {
            let arguments = parse_arguments(parser)?;
            decimal(arguments.first().copied().unwrap_or(10), arguments.get(1).copied().unwrap_or(0) as i64)?
        }
        "STRING" => utf8(),
        "CHAR" | "VARCHAR" => {
            parse_arguments(parser)?;
            utf8()
        }
        "BYTES" => DataType::Binary,
        "BINARY" | "VARBINARY" => {
            parse_arguments(parser)?;
            DataType::Binary
        }
        "DATE" => DataType::Date32,
        "TIME" => {
            let precision = parse_arguments(parser)?.first().copied().unwrap_or(0);
            if precision > 3 {
                return Err(Fault::unsupported(format!("TIME({precision})"), "TIME has a precision of 0 to 3"));
            }
            parse_zone(parser)?;
            DataType::Time32(TimeUnit::Millisecond)
        }
        "TIMESTAMP" => {
            let precision = parse_arguments(parser)?.first().copied().unwrap_or(6);
            timestamp(precision, parse_zone(parser)?)?
        }
        "TIMESTAMP_LTZ" => timestamp(parse_arguments(parser)?.first().copied().unwrap_or(6), true)?,
        "ARRAY" => {
            parser.expect_token(&Token::Lt)?;
            let (item, nullable) = parse_type(parser)?;
            parser.expect_token(&Token::Gt)?;
            list_of(item, nullable)
        }
        "MAP" => {
            parser.expect_token(&Token::Lt)?;
            let (key, _) = parse_type(parser)?;
            parser.expect_token(&Token::Comma)?;
            let (value, nullable) = parse_type(parser)?;
            parser.expect_token(&Token::Gt)?;
            if key != utf8() {
                return Err(Fault::unsupported("a MAP whose key is no STRING", "use MAP<STRING, …>"));
            }
            map_of(key, value, nullable)
        }
        // A query's tokens say STRUCT: see `dialect`.
        "ROW" | "STRUCT" => parse_row(parser)?,
        "MULTISET" | "RAW" | "INTERVAL" | "VARIANT" | "STRUCTURED" => return Err(Fault::unsupported(format!("the type {name}"), "")),
        "TEXT" => return Err(Fault::new("there is no type TEXT").hint("use STRING")),
        "LONG" => return Err(Fault::new("there is no type LONG").hint("use BIGINT")),
        "BOOL" => return Err(Fault::new("there is no type BOOL").hint("use BOOLEAN")),
        "DATETIME" => return Err(Fault::new("there is no type DATETIME").hint("use TIMESTAMP(3)")),
        _ => return Err(Fault::new(format!("there is no type {name}"))),
    })
}

fn parse_row(parser: &mut Parser) -> Checked<DataType> {
    let close = if parser.consume_token(&Token::LParen) {
        Token::RParen
    } else {
        parser.expect_token(&Token::Lt)?;
        Token::Gt
    };
    let mut fields = Vec::new();
    loop {
        let name = parser.parse_identifier()?;
        let (data_type, nullable) = parse_type(parser)?;
        if matches!(parser.peek_token().token, Token::SingleQuotedString(_)) {
            parser.next_token();
        }
        fields.push(Field::new(name.value, data_type, nullable));
        if !parser.consume_token(&Token::Comma) {
            break;
        }
    }
    parser.expect_token(&close)?;
    Ok(DataType::Struct(fields.into()))
}

/// `(n [, m])`, or nothing.
fn parse_arguments(parser: &mut Parser) -> Checked<Vec<u64>> {
    let mut numbers = Vec::new();
    if parser.consume_token(&Token::LParen) {
        loop {
            numbers.push(parser.parse_literal_uint()?);
            if !parser.consume_token(&Token::Comma) {
                break;
            }
        }
        parser.expect_token(&Token::RParen)?;
    }
    Ok(numbers)
}

/// `WITHOUT TIME ZONE` or `WITH LOCAL TIME ZONE`: is it an instant?
fn parse_zone(parser: &mut Parser) -> Checked<bool> {
    if parser.parse_keywords(&[Keyword::WITHOUT, Keyword::TIME, Keyword::ZONE]) {
        return Ok(false);
    }
    if parser.parse_keywords(&[Keyword::WITH, Keyword::LOCAL, Keyword::TIME, Keyword::ZONE]) {
        return Ok(true);
    }
    if parser.parse_keywords(&[Keyword::WITH, Keyword::TIME, Keyword::ZONE]) {
        return Err(Fault::unsupported("TIMESTAMP WITH TIME ZONE", "use TIMESTAMP_LTZ(3)"));
    }
    Ok(false)
}

pub(crate) fn is_word(token: &Token, word: &str) -> bool {
    matches!(token, Token::Word(found) if found.quote_style.is_none() && found.value.eq_ignore_ascii_case(word))
}

/// Types that a query names (`CAST(x AS …)`, `TIMESTAMP '…'`).
#[derive(Debug)]
pub(crate) struct FlinkTypes;

impl TypePlanner for FlinkTypes {
    fn plan_type_field(&self, sql_type: &ast::DataType) -> Result<Option<FieldRef>, DataFusionError> {
        let data_type = cast_type(sql_type)?;
        Ok(data_type.map(|data_type| Arc::new(Field::new("", data_type, true))))
    }
}

fn exact_numbers(info: &ExactNumberInfo) -> Checked<DataType> {
    match info {
        ExactNumberInfo::None => decimal(10, 0),
        ExactNumberInfo::Precision(precision) => decimal(*precision, 0),
        ExactNumberInfo::PrecisionAndScale(precision, scale) => decimal(*precision, *scale),
    }
}

/// No text is cut or padded by its type here, so a `CAST` that asks for it is refused.
fn cast_text(sql_type: &ast::DataType, length: Option<u64>) -> Checked<DataType> {
    match length {
        None | Some(VARCHAR_LENGTH_MAX) => Ok(utf8()),
        Some(length) => {
            Err(Fault::unsupported(format!("a CAST to {sql_type}"), format!("write SUBSTRING(CAST(… AS STRING) FROM 1 FOR {length})")))
        }
    }
}

/// Nor is a time cut to digits for which there is no unit.
fn cast_timestamp(precision: u64, zoned: bool) -> Checked<DataType> {
    match precision {
        0..=2 | 4 | 5 | 7 | 8 => {
            let name = if zoned { "TIMESTAMP_LTZ" } else { "TIMESTAMP" };
            let hint = "the precisions 3, 6 and 9 are; FLOOR(… TO SECOND) cuts a fraction off";
            Err(Fault::unsupported(format!("a CAST to {name}({precision})"), hint))
        }
        _ => timestamp(precision, zoned),
    }
}

fn cast_type(sql_type: &ast::DataType) -> Checked<Option<DataType>> {
    use ast::DataType as Sql;
    Ok(Some(match sql_type {
        Sql::Boolean => DataType::Boolean,
        Sql::TinyInt(_) => DataType::Int8,
        Sql::SmallInt(_) => DataType::Int16,
        Sql::Int(_) | Sql::Integer(_) => DataType::Int32,
        Sql::BigInt(_) => DataType::Int64,
        Sql::Float(_) => DataType::Float32,
        Sql::Double(_) | Sql::DoublePrecision => DataType::Float64,
        Sql::Decimal(info) | Sql::Dec(info) | Sql::Numeric(info) => exact_numbers(info)?,
        Sql::String(length) => cast_text(sql_type, *length)?,
        Sql::Varchar(length) | Sql::Char(length) | Sql::Character(length) | Sql::CharacterVarying(length) | Sql::CharVarying(length) => {
            let length = match length {
                Some(CharacterLength::IntegerLength { length, .. }) => Some(*length),
                Some(CharacterLength::Max) | None => None,
            };
            cast_text(sql_type, length)?
        }
        Sql::Bytes(_) | Sql::Varbinary(_) | Sql::Binary(_) => DataType::Binary,
        Sql::Date => DataType::Date32,
        Sql::Time(..) => DataType::Time32(TimeUnit::Millisecond),
        Sql::Timestamp(precision, zone) => match zone {
            TimezoneInfo::WithTimeZone | TimezoneInfo::Tz => {
                return Err(Fault::unsupported("TIMESTAMP WITH TIME ZONE", "use TIMESTAMP_LTZ(3)"));
            }
            TimezoneInfo::None | TimezoneInfo::WithoutTimeZone => cast_timestamp(precision.unwrap_or(6), false)?,
        },
        Sql::Array(ArrayElemTypeDef::AngleBracket(item)) => match cast_type(item)? {
            Some(item) => list_of(item, true),
            None => return Ok(None),
        },
        Sql::Struct(fields, _) => {
            let mut members = Vec::new();
            for field in fields {
                let (Some(name), Some(data_type)) = (&field.field_name, cast_type(&field.field_type)?) else { return Ok(None) };
                members.push(Field::new(&name.value, data_type, true));
            }
            DataType::Struct(members.into())
        }
        Sql::Custom(name, arguments) if name.to_string().eq_ignore_ascii_case("TIMESTAMP_LTZ") => {
            let precision = arguments.first().and_then(|text| text.parse().ok()).unwrap_or(6);
            cast_timestamp(precision, true)?
        }
        Sql::Custom(name, _) => return Err(Fault::new(format!("there is no type {name}"))),
        _ => return Ok(None),
    }))
}

/// A type as a user writes it.
pub(crate) fn words(data_type: &DataType) -> String {
    match data_type {
        DataType::Null => "NULL".into(),
        DataType::Boolean => "BOOLEAN".into(),
        DataType::Int8 => "TINYINT".into(),
        DataType::Int16 => "SMALLINT".into(),
        DataType::Int32 => "INT".into(),
        DataType::Int64 => "BIGINT".into(),
        DataType::Float32 => "FLOAT".into(),
        DataType::Float64 => "DOUBLE".into(),
        DataType::Decimal128(precision, scale) => format!("DECIMAL({precision}, {scale})"),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "STRING".into(),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => "BYTES".into(),
        DataType::Date32 => "DATE".into(),
        DataType::Time32(_) | DataType::Time64(_) => "TIME".into(),
        DataType::Timestamp(unit, zone) => {
            let precision = match unit {
                TimeUnit::Second | TimeUnit::Millisecond => 3,
                TimeUnit::Microsecond => 6,
                TimeUnit::Nanosecond => 9,
            };
            format!("TIMESTAMP{}({precision})", if zone.is_some() { "_LTZ" } else { "" })
        }
        DataType::List(item) => format!("ARRAY<{}>", words(item.data_type())),
        DataType::Struct(fields) => {
            let fields: Vec<String> = fields.iter().map(|field| format!("{} {}", field.name(), words(field.data_type()))).collect();
            format!("ROW<{}>", fields.join(", "))
        }
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(fields) if fields.len() == 2 => {
                format!("MAP<{}, {}>", words(fields[0].data_type()), words(fields[1].data_type()))
            }
            other => format!("MAP<{other}>"),
        },
        other => other.to_string(),
    }
}

/// Does `INSERT INTO` turn one type into the other by itself, as Flink does?
pub(crate) fn casts_implicitly(from: &DataType, to: &DataType) -> bool {
    use DataType::*;
    if from == to || *from == Null {
        return true;
    }
    match (from, to) {
        (Int8, Int16 | Int32 | Int64) | (Int16, Int32 | Int64) | (Int32, Int64) => true,
        (Int8 | Int16 | Int32 | Int64 | Decimal128(..), Float32) => true,
        (Int8 | Int16 | Int32 | Int64 | Float32 | Float64 | Decimal128(..), Decimal128(..)) => true,
        (Int8 | Int16 | Int32 | Int64 | Float32 | Decimal128(..), Float64) => true,
        (Timestamp(..), Timestamp(..) | Date32 | Time32(_)) => true,
        (Time32(_) | Time64(_), Time32(_)) => true,
        (Utf8 | LargeUtf8 | Utf8View, Utf8) | (Binary | LargeBinary | BinaryView, Binary) => true,
        (List(from), List(to)) => casts_implicitly(from.data_type(), to.data_type()),
        (Struct(from), Struct(to)) => {
            from.len() == to.len() && from.iter().zip(to).all(|(from, to)| casts_implicitly(from.data_type(), to.data_type()))
        }
        (Map(from, _), Map(to, _)) => casts_implicitly(from.data_type(), to.data_type()),
        _ => false,
    }
}
