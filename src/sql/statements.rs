//! What a job's text may hold: `CREATE TABLE`, `CREATE VIEW`, `INSERT INTO`, `SET`. Everything else is refused by name.

use crate::ddl::{self, CreateTable};
use crate::dialect::{Piece, string_literal};
use crate::error::{Checked, Fault};
use sqlparser::ast;
use sqlparser::keywords::Keyword;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::{Span, Token};

pub(crate) enum Statement {
    CreateTable(CreateTable),
    CreateView(CreateView),
    Insert(InsertInto),
    Set { key: String, value: String },
}

pub(crate) struct CreateView {
    pub name: ast::Ident,
    /// New names for the query's columns, or none.
    pub columns: Vec<ast::Ident>,
    pub query: ast::Query,
    pub span: Span,
}

pub(crate) struct InsertInto {
    pub table: ast::Ident,
    /// Target columns, or none for all in table order.
    pub columns: Vec<ast::Ident>,
    pub query: ast::Query,
    pub span: Span,
}

/// Statements that Flink knows and a job file has no use for: (first words, why, way around).
const REFUSED: &[(&[&str], &str)] = &[
    (&["CREATE", "FUNCTION"], "only built-in functions can be called"),
    (&["CREATE", "TEMPORARY", "FUNCTION"], "only built-in functions can be called"),
    (&["CREATE", "TEMPORARY", "SYSTEM", "FUNCTION"], "only built-in functions can be called"),
    (&["CREATE", "CATALOG"], "write table names without a catalog"),
    (&["CREATE", "DATABASE"], "write table names without a database"),
    (&["CREATE", "MATERIALIZED"], "write CREATE TABLE for the result and INSERT INTO it"),
    (&["CREATE", "SOURCE"], "write CREATE TABLE … WITH ('connector' = '…')"),
    (&["CREATE", "SINK"], "write CREATE TABLE … WITH ('connector' = '…') and INSERT INTO it"),
    (&["CREATE", "MODEL"], ""),
    (&["CREATE", "OR"], "names are defined once"),
    (&["DROP"], "a job's text defines its tables anew; remove the definition instead"),
    (&["ALTER"], "change the CREATE TABLE instead"),
    (&["USE"], "write table names without a catalog or database"),
    (&["SHOW"], "a job holds only definitions and INSERT INTO"),
    (&["DESCRIBE"], "a job holds only definitions and INSERT INTO"),
    (&["DESC"], "a job holds only definitions and INSERT INTO"),
    (&["EXPLAIN"], "use `streamshield explain`"),
    (&["RESET"], "remove the SET instead"),
    (&["LOAD"], ""),
    (&["UNLOAD"], ""),
    (&["ANALYZE"], ""),
    (&["UPDATE"], "streams are append-only"),
    (&["DELETE"], "streams are append-only"),
    (&["TRUNCATE"], "streams are append-only"),
    (&["MERGE"], "streams are append-only"),
    (&["CALL"], ""),
    (&["ADD"], ""),
    (&["REMOVE"], ""),
    (&["COMPILE"], ""),
    (&["STOP"], ""),
    (&["SELECT"], "a query has to go somewhere: write INSERT INTO a table (connector 'print' shows its rows)"),
    (&["WITH"], "a query has to go somewhere: write INSERT INTO a table (connector 'print' shows its rows)"),
    (&["VALUES"], "a query has to go somewhere: write INSERT INTO a table (connector 'print' shows its rows)"),
];

pub(crate) fn parse(piece: &Piece) -> Checked<Statement> {
    let mut parser = piece.parser();
    let statement = parse_statement(piece, &mut parser).map_err(|fault| fault.or_at(piece.span))?;
    let rest = parser.peek_token();
    if rest.token != Token::EOF {
        return Err(Fault::new(format!("expected the end of the statement, found {}", rest.token))
            .at(rest.span)
            .hint("is a semicolon missing?"));
    }
    Ok(statement)
}

fn parse_statement(piece: &Piece, parser: &mut Parser) -> Checked<Statement> {
    if piece.starts_with(&["CREATE", "TABLE"]) || piece.starts_with(&["CREATE", "TEMPORARY", "TABLE"]) {
        return Ok(Statement::CreateTable(ddl::parse_create_table(parser, piece.span)?));
    }
    if piece.starts_with(&["CREATE", "VIEW"]) || piece.starts_with(&["CREATE", "TEMPORARY", "VIEW"]) {
        return parse_view(parser, piece.span).map(Statement::CreateView);
    }
    if piece.starts_with(&["INSERT"]) {
        return parse_insert(parser, piece.span).map(Statement::Insert);
    }
    if piece.starts_with(&["SET"]) {
        return parse_set(parser);
    }
    let first = piece.tokens.first().map_or(piece.span, |token| token.span);
    for (words, hint) in REFUSED {
        if piece.starts_with(words) {
            return Err(Fault::new(format!("{} is not a statement of a job", words.join(" "))).hint(*hint).at(first));
        }
    }
    let found = piece.tokens.first().map_or(String::new(), |token| token.token.to_string());
    Err(Fault::new(format!("expected CREATE TABLE, CREATE VIEW, INSERT INTO or SET, found {found}")).at(first))
}

fn parse_view(parser: &mut Parser, span: Span) -> Checked<CreateView> {
    parser.expect_keyword(Keyword::CREATE)?;
    let _ = parser.parse_keyword(Keyword::TEMPORARY);
    parser.expect_keyword(Keyword::VIEW)?;
    let _ = parser.parse_keywords(&[Keyword::IF, Keyword::NOT, Keyword::EXISTS]);
    let name = ddl::parse_table_name(parser)?;
    let columns = if parser.peek_token().token == Token::LParen { parse_names(parser)? } else { Vec::new() };
    if parser.parse_keyword(Keyword::COMMENT) {
        string_literal(parser)?;
    }
    parser.expect_keyword(Keyword::AS)?;
    Ok(CreateView { name, columns, query: *parser.parse_query()?, span })
}

fn parse_insert(parser: &mut Parser, span: Span) -> Checked<InsertInto> {
    parser.expect_keyword(Keyword::INSERT)?;
    let token = parser.peek_token();
    if parser.parse_keyword(Keyword::OVERWRITE) {
        return Err(Fault::unsupported("INSERT OVERWRITE", "a stream has no end to overwrite at: write INSERT INTO").at(token.span));
    }
    parser.expect_keyword(Keyword::INTO)?;
    let table = ddl::parse_table_name(parser)?;
    let token = parser.peek_token();
    if parser.parse_keyword(Keyword::PARTITION) {
        return Err(Fault::unsupported("PARTITION (…)", "select the partition's columns").at(token.span));
    }
    let is_columns = parser.peek_token().token == Token::LParen
        && !matches!(parser.peek_nth_token(1).token, Token::Word(word) if word.quote_style.is_none() && matches!(word.keyword, Keyword::SELECT | Keyword::WITH | Keyword::VALUES));
    let columns = if is_columns { parse_names(parser)? } else { Vec::new() };
    Ok(InsertInto { table, columns, query: *parser.parse_query()?, span })
}

/// `(a, b, …)`
pub(crate) fn parse_names(parser: &mut Parser) -> Checked<Vec<ast::Ident>> {
    parser.expect_token(&Token::LParen)?;
    let mut names = vec![parser.parse_identifier()?];
    while parser.consume_token(&Token::Comma) {
        names.push(parser.parse_identifier()?);
    }
    parser.expect_token(&Token::RParen)?;
    Ok(names)
}

fn parse_set(parser: &mut Parser) -> Checked<Statement> {
    parser.expect_keyword(Keyword::SET)?;
    let (key, _) = string_literal(parser)?;
    parser.expect_token(&Token::Eq)?;
    let (value, _) = string_literal(parser)?;
    Ok(Statement::Set { key, value })
}
