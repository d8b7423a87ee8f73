//! Flink's spellings that DataFusion's planner does not know, turned into ones that it does, in the syntax tree.
//!
//! Here is what needs no types: `MOD(a, b)` is `a % b`. What needs a body is a function in [`crate::functions`].

use sqlparser::ast::{
    self, BinaryOperator, CaseWhen, CeilFloorKind, DateTimeField, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList,
    FunctionArguments, Ident, ObjectName, Query, Value, VisitMut, VisitorMut,
};
use std::ops::ControlFlow;

/// Rewrites a whole query.
pub(crate) fn rewrite(query: &mut Query) {
    let ControlFlow::Continue(()) = VisitMut::visit(query, &mut Spellings);
}

/// Rewrites one expression of a `CREATE TABLE`.
pub(crate) fn rewrite_expression(expression: &mut Expr) {
    let ControlFlow::Continue(()) = VisitMut::visit(expression, &mut Spellings);
}

struct Spellings;

impl VisitorMut for Spellings {
    type Break = std::convert::Infallible;

    fn post_visit_expr(&mut self, expression: &mut Expr) -> ControlFlow<Self::Break> {
        let replacement = match expression {
            Expr::Function(function) if function.over.is_none() => replace_function(function),
            Expr::Floor { expr, field: CeilFloorKind::DateTimeField(unit) } => truncated("__floor_to", unit, expr),
            Expr::Ceil { expr, field: CeilFloorKind::DateTimeField(unit) } => truncated("__ceil_to", unit, expr),
            Expr::Extract { field: DateTimeField::Dow, expr, .. } => Some(day_of_week(expr)),
            Expr::Extract { field, expr, .. } => Some(part_of(&field.to_string(), expr)),
            Expr::Substring { expr, substring_from, substring_for, .. } => {
                substring(expr, substring_from.as_deref(), substring_for.as_deref())
            }
            Expr::Like { any: false, pattern, escape_char: None, .. } | Expr::ILike { any: false, pattern, escape_char: None, .. } => {
                double_backslashes(pattern);
                None
            }
            _ => None,
        };
        if let Some(replacement) = replacement {
            *expression = replacement;
        }
        ControlFlow::Continue(())
    }
}

fn truncated(function: &str, unit: &DateTimeField, expression: &Expr) -> Option<Expr> {
    if *unit == DateTimeField::NoDateTime {
        return None;
    }
    Some(call(function, vec![text(&unit.to_string().to_uppercase()), expression.clone()]))
}

/// A BIGINT in Flink. DataFusion's are INT, the seconds since 1970 a DOUBLE with the fraction, and what is finer than a second counts from the
/// minute's start, not from the second's.
fn part_of(part: &str, time: &Expr) -> Expr {
    let whole = cast(call("date_part", vec![text(part), time.clone()]), ast::DataType::BigInt(None));
    let per_second = match part.to_lowercase().as_str() {
        "millisecond" => "1000",
        "microsecond" => "1000000",
        "nanosecond" => "1000000000",
        _ => return whole,
    };
    Expr::Nested(Box::new(Expr::BinaryOp { left: Box::new(whole), op: BinaryOperator::Modulo, right: Box::new(number(per_second)) }))
}

/// From 1 on, Sunday; DataFusion counts from 0.
fn day_of_week(time: &Expr) -> Expr {
    Expr::Nested(Box::new(Expr::BinaryOp { left: Box::new(part_of("dow", time)), op: BinaryOperator::Plus, right: Box::new(number("1")) }))
}

/// Both spellings are the parser's own, and would be planned past our function.
fn substring(whole: &Expr, from: Option<&Expr>, length: Option<&Expr>) -> Option<Expr> {
    if from.is_none() && length.is_none() {
        return None;
    }
    let from = from.cloned().unwrap_or_else(|| number("1"));
    Some(call("substr", [whole.clone(), from].into_iter().chain(length.cloned()).collect()))
}

/// Without ESCAPE no character of a pattern is an escape in Flink; in DataFusion the backslash is.
fn double_backslashes(pattern: &mut Expr) {
    if let Expr::Value(literal) = pattern
        && let Value::SingleQuotedString(written) = &mut literal.value
    {
        *written = written.replace('\\', r"\\");
    } else {
        *pattern = call("replace", vec![pattern.clone(), text(r"\"), text(r"\\")]);
    }
}

/// DataFusion's `array_remove` removes the first one only, and `array_remove_all` makes the array NULL if the element is.
fn array_remove(array: &Expr, element: &Expr) -> Expr {
    let is_null = Expr::IsNull(Box::new(nested(element)));
    let without_nulls = CaseWhen { condition: is_null, result: call("array_compact", vec![array.clone()]) };
    case(None, vec![without_nulls], Some(call("array_remove_all", vec![array.clone(), element.clone()])))
}

/// DataFusion's position is NULL where nothing is found, and finds a NULL.
fn array_position(array: &Expr, element: &Expr) -> Option<Expr> {
    let position = cast(call("array_position", vec![array.clone(), element.clone()]), ast::DataType::Int(None));
    unless_null(&[array, element], call("coalesce", vec![position, number("0")]))
}

/// The positional arguments of a plain call.
pub(crate) fn plain_arguments(function: &Function) -> Option<Vec<&Expr>> {
    let arguments = match &function.args {
        FunctionArguments::None => return Some(Vec::new()),
        FunctionArguments::List(list) if list.duplicate_treatment.is_none() && list.clauses.is_empty() => &list.args,
        _ => return None,
    };
    let expression = |argument: &'_ FunctionArg| matches!(argument, FunctionArg::Unnamed(FunctionArgExpr::Expr(_)));
    arguments.iter().all(expression).then(|| {
        let expressions = arguments.iter().filter_map(|argument| match argument {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(expression)) => Some(expression),
            _ => None,
        });
        expressions.collect()
    })
}

fn replace_function(function: &Function) -> Option<Expr> {
    let name = function.name.to_string().to_lowercase();
    let arguments = plain_arguments(function)?;
    match (name.as_str(), arguments.as_slice()) {
        ("mod", [left, right]) => Some(Expr::Nested(Box::new(Expr::BinaryOp {
            left: Box::new(nested(left)),
            op: BinaryOperator::Modulo,
            right: Box::new(nested(right)),
        }))),
        ("if", [condition, then, otherwise]) => {
            let then = CaseWhen { condition: (*condition).clone(), result: (*then).clone() };
            Some(case(None, vec![then], Some((*otherwise).clone())))
        }
        // DataFusion's has the common type of both.
        ("nullif", [value, other]) => {
            let condition = Expr::BinaryOp { left: Box::new(nested(value)), op: BinaryOperator::Eq, right: Box::new(nested(other)) };
            let null = Expr::Value(Value::Null.with_empty_span());
            Some(case(None, vec![CaseWhen { condition, result: null }], Some((*value).clone())))
        }
        // DataFusion's skip NULLs.
        ("greatest" | "least", values) => {
            let result = call(&format!("__{name}"), values.iter().map(|value| (*value).clone()).collect());
            unless_null(values, result)
        }
        // DataFusion's logarithm with one argument has the base 10.
        ("log", [value]) => Some(call("ln", vec![(*value).clone()])),
        ("array_remove", [array, element]) => Some(array_remove(array, element)),
        ("array_position", [array, element]) => array_position(array, element),
        ("ifnull", [value, otherwise]) => Some(call("coalesce", vec![(*value).clone(), (*otherwise).clone()])),
        ("locate", [part, whole]) => Some(call("strpos", vec![(*whole).clone(), (*part).clone()])),
        ("unix_timestamp", []) => Some(call("__unix_timestamp_now", Vec::new())),
        ("timestampdiff", [unit, from, to]) => Some(call("__timestamp_diff", vec![unit_text(unit)?, (*from).clone(), (*to).clone()])),
        ("timestampadd", [unit, count, time]) => Some(call("__timestamp_add", vec![unit_text(unit)?, (*count).clone(), (*time).clone()])),
        ("regexp", [text, expression]) => Some(call("regexp_like", vec![(*text).clone(), (*expression).clone()])),
        ("sha224" | "sha256" | "sha384" | "sha512", [value]) => Some(hex_of(&name, value)),
        ("sha2", [value, length]) => sha2(value, length),
        ("to_base64", [value]) => Some(call("encode", vec![(*value).clone(), text("base64pad")])),
        ("from_base64", [value]) => {
            let bytes = call("decode", vec![(*value).clone(), text("base64")]);
            Some(call("__text_of_bytes", vec![bytes]))
        }
        ("sign", [value]) => Some(call("signum", vec![(*value).clone()])),
        ("truncate", [value]) => Some(call("trunc", vec![(*value).clone()])),
        ("truncate", [value, digits]) => Some(call("trunc", vec![(*value).clone(), (*digits).clone()])),
        ("e", []) => Some(call("exp", vec![number("1")])),
        ("dayofweek", [time]) => Some(day_of_week(time)),
        (_, [time]) => date_part(&name).map(|part| part_of(part, time)),
        _ => None,
    }
}

/// The functions that take a time apart: DataFusion's name of the part.
fn date_part(function: &str) -> Option<&'static str> {
    Some(match function {
        "year" => "year",
        "quarter" => "quarter",
        "month" => "month",
        "week" => "week",
        "dayofyear" => "doy",
        "dayofmonth" => "day",
        "hour" => "hour",
        "minute" => "minute",
        "second" => "second",
        _ => return None,
    })
}

fn hex_of(function: &str, value: &Expr) -> Expr {
    // Our own name for DataFusion's function, so that the result is not rewritten again.
    call("encode", vec![call(&format!("__{function}"), vec![value.clone()]), text("hex")])
}

/// `SHA2(text, bits)`. Of a number of bits that is written out and that there is no hash for, the planner says that it does not know the function.
fn sha2(value: &Expr, bits: &Expr) -> Option<Expr> {
    const BITS: [&str; 4] = ["224", "256", "384", "512"];
    let hash = |bits: &str| hex_of(&format!("sha{bits}"), value);
    if let Expr::Value(literal) = bits {
        let Value::Number(digits, _) = &literal.value else { return None };
        return BITS.contains(&digits.as_str()).then(|| hash(digits.as_str()));
    }
    let hashes = BITS.into_iter().map(|known| CaseWhen { condition: number(known), result: hash(known) });
    Some(case(Some(bits.clone()), hashes.collect(), None))
}

/// In Flink one NULL among the values makes the result NULL.
fn unless_null(values: &[&Expr], result: Expr) -> Option<Expr> {
    let tests = values.iter().map(|value| Expr::IsNotNull(Box::new(nested(value))));
    let condition = tests.reduce(|left, right| Expr::BinaryOp { left: Box::new(left), op: BinaryOperator::And, right: Box::new(right) })?;
    Some(case(None, vec![CaseWhen { condition, result }], None))
}

fn case(operand: Option<Expr>, conditions: Vec<CaseWhen>, otherwise: Option<Expr>) -> Expr {
    Expr::Case {
        case_token: ast::helpers::attached_token::AttachedToken::empty(),
        end_token: ast::helpers::attached_token::AttachedToken::empty(),
        operand: operand.map(Box::new),
        conditions,
        else_result: otherwise.map(Box::new),
    }
}

fn cast(expression: Expr, data_type: ast::DataType) -> Expr {
    Expr::Cast { kind: ast::CastKind::Cast, expr: Box::new(expression), data_type, array: false, format: None }
}

fn nested(expression: &Expr) -> Expr {
    Expr::Nested(Box::new(expression.clone()))
}

/// `MINUTE` as an argument is a bare word.
fn unit_text(unit: &Expr) -> Option<Expr> {
    match unit {
        Expr::Identifier(name) => Some(text(&name.value.to_uppercase())),
        _ => None,
    }
}

fn text(value: &str) -> Expr {
    Expr::Value(Value::SingleQuotedString(value.to_owned()).with_empty_span())
}

fn number(digits: &str) -> Expr {
    Expr::Value(Value::Number(digits.into(), false).with_empty_span())
}

pub(crate) fn call(name: &str, arguments: Vec<Expr>) -> Expr {
    let args = arguments.into_iter().map(|argument| FunctionArg::Unnamed(FunctionArgExpr::Expr(argument))).collect();
    Expr::Function(Function {
        name: ObjectName::from(vec![Ident::new(name)]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList { duplicate_treatment: None, args, clauses: Vec::new() }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}
