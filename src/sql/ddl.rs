//! `CREATE TABLE`, as Flink writes it.
//!
//! Only reads: what the parts mean (types of computed columns, the connector's say on its options) is
//! [`crate::catalog`]'s work, which has the places that are kept here.

use crate::dialect::string_literal;
use crate::error::{Checked, Fault};
use crate::statements::parse_names;
use crate::types::{is_word, parse_type};
use arrow_schema::DataType;
use sqlparser::ast::{Expr, Ident};
use sqlparser::keywords::Keyword;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::{Span, Token};

pub(crate) struct CreateTable {
    pub name: Ident,
    pub columns: Vec<ColumnText>,
    pub watermark: Option<WatermarkText>,
    pub primary_key: Vec<Ident>,
    pub options: Vec<OptionText>,
    pub span: Span,
}

pub(crate) struct ColumnText {
    pub name: Ident,
    pub kind: ColumnTextKind,
}

pub(crate) enum ColumnTextKind {
    Physical { data_type: DataType, nullable: bool },
    Metadata { data_type: DataType, nullable: bool, key: String, is_virtual: bool },
    Computed(Box<Expr>),
}

pub(crate) struct WatermarkText {
    pub column: Ident,
    pub expression: Expr,
    pub span: Span,
}

pub(crate) struct OptionText {
    pub key: String,
    pub value: String,
    pub span: Span,
}

/// A table's name; a catalog or database in front is refused.
pub(crate) fn parse_table_name(parser: &mut Parser) -> Checked<Ident> {
    let name = parser.parse_identifier()?;
    let next = parser.peek_token();
    if next.token == Token::Period {
        return Err(Fault::unsupported("a catalog or database in a name", "write the table's name alone").at(name.span.union(&next.span)));
    }
    Ok(name)
}

pub(crate) fn parse_create_table(parser: &mut Parser, span: Span) -> Checked<CreateTable> {
    // `>>` closes two types here and shifts nothing.
    split_shifts(parser);
    parser.expect_keyword(Keyword::CREATE)?;
    let _ = parser.parse_keyword(Keyword::TEMPORARY);
    parser.expect_keyword(Keyword::TABLE)?;
    let _ = parser.parse_keywords(&[Keyword::IF, Keyword::NOT, Keyword::EXISTS]);
    let name = parse_table_name(parser)?;
    let mut table = CreateTable { name, columns: Vec::new(), watermark: None, primary_key: Vec::new(), options: Vec::new(), span };
    if parser.consume_token(&Token::LParen) && !parser.consume_token(&Token::RParen) {
        loop {
            parse_item(parser, &mut table)?;
            if !parser.consume_token(&Token::Comma) {
                break;
            }
        }
        parser.expect_token(&Token::RParen)?;
    }
    parse_tail(parser, &mut table)?;
    Ok(table)
}

fn split_shifts(parser: &mut Parser) {
    let mut tokens = Vec::new();
    loop {
        let token = parser.next_token();
        match token.token {
            Token::EOF => break,
            Token::ShiftRight => {
                let half = sqlparser::tokenizer::TokenWithSpan { token: Token::Gt, span: token.span };
                tokens.extend([half.clone(), half]);
            }
            _ => tokens.push(token),
        }
    }
    *parser = Parser::new(&crate::dialect::FlinkDialect).with_tokens_with_locations(tokens);
}

fn parse_item(parser: &mut Parser, table: &mut CreateTable) -> Checked<()> {
    let token = parser.peek_token();
    if is_word(&token.token, "WATERMARK") && is_word(&parser.peek_nth_token(1).token, "FOR") {
        let watermark = parse_watermark(parser)?;
        if table.watermark.replace(watermark).is_some() {
            return Err(Fault::new("a table has at most one WATERMARK").at(token.span));
        }
        return Ok(());
    }
    if parser.parse_keyword(Keyword::CONSTRAINT) {
        parser.parse_identifier()?;
        return parse_primary_key(parser, table);
    }
    if is_word(&token.token, "PRIMARY") && is_word(&parser.peek_nth_token(1).token, "KEY") {
        return parse_primary_key(parser, table);
    }
    if is_word(&token.token, "UNIQUE") && parser.peek_nth_token(1).token == Token::LParen {
        return Err(Fault::unsupported("UNIQUE", "only PRIMARY KEY (…) NOT ENFORCED").at(token.span));
    }
    let column = parse_column(parser, table)?;
    if table.columns.iter().any(|other| other.name.value == column.name.value) {
        return Err(Fault::new(format!("column `{}` is defined twice", column.name.value)).at(column.name.span));
    }
    table.columns.push(column);
    Ok(())
}

fn parse_watermark(parser: &mut Parser) -> Checked<WatermarkText> {
    let start = parser.next_token().span;
    parser.next_token();
    let column = parser.parse_identifier()?;
    let next = parser.peek_token();
    if next.token == Token::Period {
        return Err(Fault::unsupported("a watermark for a nested field", "declare a computed column for the field first").at(next.span));
    }
    parser.expect_keyword(Keyword::AS)?;
    let expression = parser.parse_expr()?;
    let span = start.union(&parser.get_current_token().span);
    Ok(WatermarkText { column, expression, span })
}

fn parse_primary_key(parser: &mut Parser, table: &mut CreateTable) -> Checked<()> {
    let start = parser.peek_token().span;
    parser.expect_keyword(Keyword::PRIMARY)?;
    parser.expect_keyword(Keyword::KEY)?;
    let columns = parse_names(parser)?;
    expect_not_enforced(parser, start)?;
    set_primary_key(table, columns, start)
}

fn expect_not_enforced(parser: &mut Parser, span: Span) -> Checked<()> {
    if parser.parse_keyword(Keyword::NOT) && is_word(&parser.peek_token().token, "ENFORCED") {
        parser.next_token();
        return Ok(());
    }
    Err(Fault::new("a PRIMARY KEY cannot be enforced on a stream").hint("write PRIMARY KEY (…) NOT ENFORCED").at(span))
}

fn set_primary_key(table: &mut CreateTable, columns: Vec<Ident>, span: Span) -> Checked<()> {
    if !table.primary_key.is_empty() {
        return Err(Fault::new("a table has at most one PRIMARY KEY").at(span));
    }
    table.primary_key = columns;
    Ok(())
}

fn parse_column(parser: &mut Parser, table: &mut CreateTable) -> Checked<ColumnText> {
    let name = parser.parse_identifier()?;
    if name.value.starts_with("__") {
        return Err(
            Fault::new(format!("column `{}`: names that start with two underscores are streamshield's own", name.value)).at(name.span)
        );
    }
    if parser.parse_keyword(Keyword::AS) {
        let expression = parser.parse_expr()?;
        parse_comment(parser)?;
        return Ok(ColumnText { name, kind: ColumnTextKind::Computed(Box::new(expression)) });
    }
    let (data_type, nullable) = parse_type(parser)?;
    let token = parser.peek_token();
    let mut kind = ColumnTextKind::Physical { data_type: data_type.clone(), nullable };
    if is_word(&token.token, "METADATA") {
        parser.next_token();
        let key = if parser.parse_keyword(Keyword::FROM) { string_literal(parser)?.0 } else { name.value.clone() };
        let is_virtual = parser.parse_keyword(Keyword::VIRTUAL);
        kind = ColumnTextKind::Metadata { data_type, nullable, key, is_virtual };
    } else if is_word(&token.token, "PRIMARY") {
        parser.next_token();
        parser.expect_keyword(Keyword::KEY)?;
        expect_not_enforced(parser, token.span)?;
        set_primary_key(table, vec![name.clone()], token.span)?;
    } else if is_word(&token.token, "DEFAULT") || is_word(&token.token, "GENERATED") || is_word(&token.token, "CHECK") {
        return Err(Fault::unsupported(&token.token, "a computed column is written `name AS expression`").at(token.span));
    }
    parse_comment(parser)?;
    Ok(ColumnText { name, kind })
}

fn parse_comment(parser: &mut Parser) -> Checked<()> {
    if parser.parse_keyword(Keyword::COMMENT) {
        string_literal(parser)?;
    }
    Ok(())
}

fn parse_tail(parser: &mut Parser, table: &mut CreateTable) -> Checked<()> {
    parse_comment(parser)?;
    let token = parser.peek_token();
    if is_word(&token.token, "PARTITIONED") || is_word(&token.token, "DISTRIBUTED") {
        let hint = "a Kafka sink is partitioned by 'key.fields'";
        return Err(Fault::unsupported(&token.token, hint).at(token.span));
    }
    if parser.parse_keyword(Keyword::WITH) {
        parse_options(parser, table)?;
    }
    let token = parser.peek_token();
    if is_word(&token.token, "LIKE") {
        return Err(Fault::unsupported("LIKE", "write the columns and options out").at(token.span));
    }
    if is_word(&token.token, "AS") {
        return Err(
            Fault::unsupported("CREATE TABLE … AS SELECT", "write CREATE TABLE with its columns, then INSERT INTO it").at(token.span)
        );
    }
    Ok(())
}

/// `WITH ('key' = 'value', bare.key = 'value', …)`
fn parse_options(parser: &mut Parser, table: &mut CreateTable) -> Checked<()> {
    parser.expect_token(&Token::LParen)?;
    if parser.consume_token(&Token::RParen) {
        return Ok(());
    }
    loop {
        let start = parser.peek_token().span;
        let key = parse_option_key(parser)?;
        parser.expect_token(&Token::Eq)?;
        let value = parser.next_token();
        let text = match value.token {
            Token::SingleQuotedString(text) | Token::Number(text, _) => text,
            Token::Word(word) if word.quote_style.is_none() && matches!(word.keyword, Keyword::TRUE | Keyword::FALSE) => {
                word.value.to_lowercase()
            }
            other => return Err(Fault::new(format!("expected the value of option '{key}' in single quotes, found {other}")).at(value.span)),
        };
        let span = start.union(&value.span);
        if table.options.iter().any(|option| option.key == key) {
            return Err(Fault::new(format!("option '{key}' is given twice")).at(span));
        }
        table.options.push(OptionText { key, value: text, span });
        if !parser.consume_token(&Token::Comma) {
            break;
        }
    }
    parser.expect_token(&Token::RParen)?;
    Ok(())
}

/// A key in quotes, or bare with dots and dashes between words.
fn parse_option_key(parser: &mut Parser) -> Checked<String> {
    if matches!(parser.peek_token().token, Token::SingleQuotedString(_)) {
        return Ok(string_literal(parser)?.0);
    }
    let mut key = parser.parse_identifier()?.value;
    loop {
        let separator = match parser.peek_token().token {
            Token::Period => '.',
            Token::Minus => '-',
            _ => return Ok(key),
        };
        parser.next_token();
        key.push(separator);
        key.push_str(&parser.parse_identifier()?.value);
    }
}
