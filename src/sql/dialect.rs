//! The Flink dialect on sqlparser's hooks, and the cutting of a text into statements.
//!
//! sqlparser's generic grammar reads most of Flink's queries. What it lacks is added here: `TABLE name` as a function
//! argument, `ROW<…>` types, statement sets. `CREATE TABLE` has a parser of its own ([`crate::ddl`]), since nearly every
//! part of it differs. `dialect()` answers `GenericDialect`, so that the parser's own `dialect_of!` branches stay on.

use crate::error::{Checked, Fault};
use crate::types::is_word;
use sqlparser::ast::Expr;
use sqlparser::dialect::{Dialect, GenericDialect};
use sqlparser::keywords::Keyword;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::{Location, Span, Token, TokenWithSpan, Tokenizer, Whitespace};
use std::any::TypeId;

#[derive(Debug)]
pub(crate) struct FlinkDialect;

impl Dialect for FlinkDialect {
    fn dialect(&self) -> TypeId {
        TypeId::of::<GenericDialect>()
    }
    fn is_delimited_identifier_start(&self, ch: char) -> bool {
        ch == '`' || ch == '"'
    }
    fn is_identifier_start(&self, ch: char) -> bool {
        ch.is_alphabetic() || ch == '_'
    }
    fn is_identifier_part(&self, ch: char) -> bool {
        ch.is_alphanumeric() || ch == '_' || ch == '$'
    }
    fn supports_filter_during_aggregation(&self) -> bool {
        true
    }
    fn supports_group_by_expr(&self) -> bool {
        true
    }
    fn supports_group_by_with_modifier(&self) -> bool {
        true
    }
    fn supports_match_recognize(&self) -> bool {
        true
    }
    fn supports_table_versioning(&self) -> bool {
        true
    }
    fn supports_window_function_null_treatment_arg(&self) -> bool {
        true
    }
    fn supports_window_clause_named_window_reference(&self) -> bool {
        true
    }
    fn supports_parens_around_table_factor(&self) -> bool {
        true
    }
    fn supports_values_as_table_factor(&self) -> bool {
        true
    }
    fn supports_named_fn_args_with_rarrow_operator(&self) -> bool {
        true
    }
    fn allow_extract_custom(&self) -> bool {
        true
    }
    fn supports_order_by_all(&self) -> bool {
        false
    }
    fn supports_limit_comma(&self) -> bool {
        false
    }

    /// `TABLE bid` and `TABLE (SELECT …)`, the data argument of a window function.
    fn parse_prefix(&self, parser: &mut Parser) -> Option<Result<Expr, ParserError>> {
        let is_table = |token: &Token| matches!(token, Token::Word(word) if word.quote_style.is_none() && word.keyword == Keyword::TABLE);
        if !is_table(&parser.peek_token().token) {
            return None;
        }
        match parser.peek_nth_token(1).token {
            Token::Word(_) => {
                parser.next_token();
                Some(
                    parser
                        .parse_object_name(false)
                        .map(|name| Expr::CompoundIdentifier(name.0.into_iter().filter_map(|part| part.as_ident().cloned()).collect())),
                )
            }
            Token::LParen => {
                parser.next_token();
                Some(parser.parse_expr())
            }
            _ => None,
        }
    }
}

/// One statement's tokens, without white space, and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub tokens: Vec<TokenWithSpan>,
    pub span: Span,
}

impl Piece {
    /// The words that a statement starts with decide what it is.
    pub fn starts_with(&self, words: &[&str]) -> bool {
        self.tokens.len() >= words.len() && words.iter().zip(&self.tokens).all(|(word, token)| is_word(&token.token, word))
    }

    pub fn parser(&self) -> Parser<'static> {
        Parser::new(&FlinkDialect).with_tokens_with_locations(self.tokens.clone())
    }
}

/// Cuts a text at its semicolons. Hints are errors, since a dropped hint would change what a job does.
pub(crate) fn split(sql: &str) -> Result<Vec<Piece>, Vec<Fault>> {
    let tokens = Tokenizer::new(&FlinkDialect, sql).tokenize_with_location().map_err(|error| {
        let start = error.location;
        let end = Location { line: start.line, column: start.column + 1 };
        vec![Fault::new(error.message).at(Span { start, end })]
    })?;
    let mut faults = Vec::new();
    let mut pieces = Vec::new();
    let mut current = Vec::new();
    for token in tokens {
        match &token.token {
            Token::Whitespace(Whitespace::MultiLineComment(comment)) if comment.starts_with('+') => {
                faults.push(Fault::unsupported("a query hint", "put options into the table's WITH (…), or remove the hint").at(token.span))
            }
            Token::Whitespace(_) | Token::EOF => {}
            Token::SemiColon => pieces.extend(piece(std::mem::take(&mut current))),
            _ => current.push(token),
        }
    }
    pieces.extend(piece(current));
    if faults.is_empty() { Ok(pieces) } else { Err(faults) }
}

/// Statement sets only bracket statements: a job's `INSERT`s run as one anyway.
const BRACKETS: &[&[&str]] = &[
    &["EXECUTE", "STATEMENT", "SET", "BEGIN"],
    &["EXECUTE", "STATEMENT", "SET"],
    &["BEGIN", "STATEMENT", "SET"],
    &["STATEMENT", "SET", "BEGIN"],
    &["STATEMENT", "SET"],
    &["BEGIN"],
    &["END"],
];

fn piece(mut tokens: Vec<TokenWithSpan>) -> Option<Piece> {
    let opening = |tokens: &[TokenWithSpan]| {
        BRACKETS
            .iter()
            .find(|words| tokens.len() >= words.len() && words.iter().zip(tokens).all(|(word, token)| is_word(&token.token, word)))
            .map(|words| words.len())
    };
    while let Some(count) = opening(&tokens) {
        tokens.drain(..count);
    }
    if tokens.first().is_some_and(|token| is_word(&token.token, "EXECUTE"))
        && tokens.get(1).is_some_and(|token| is_word(&token.token, "INSERT"))
    {
        tokens.remove(0);
    }
    let (first, last) = (tokens.first()?.span, tokens.last()?.span);
    rewrite_types(&mut tokens);
    Some(Piece { tokens, span: first.union(&last) })
}

/// `ROW<a INT>` is `STRUCT<a INT>` to sqlparser.
fn rewrite_types(tokens: &mut [TokenWithSpan]) {
    for at in 1..tokens.len() {
        if tokens[at].token == Token::Lt && is_word(&tokens[at - 1].token, "ROW") {
            tokens[at - 1].token = Token::make_keyword("STRUCT");
        }
    }
}

/// The text of a string token, `'…'`.
pub(crate) fn string_literal(parser: &mut Parser) -> Checked<(String, Span)> {
    let token = parser.next_token();
    match token.token {
        Token::SingleQuotedString(text) => Ok((text, token.span)),
        other => Err(Fault::new(format!("expected a string in single quotes, found {other}")).at(token.span)),
    }
}
