//! Window table functions: `TUMBLE`, `HOP` and `CUMULATE` in `FROM`, as a logical node above their input.
//!
//! DataFusion would plan a function's arguments against an empty schema and would drop a table's version without a word, so
//! [`Relations`] is asked before it. The node adds `window_start`, `window_end` and `window_time`; predicates on other columns
//! and the choice of columns pass through it.

use crate::error::{Checked, Fault};
use crate::time::{self, TimeRole};
use crate::types::words;
use crate::unnest;
use arrow_schema::{DataType, Field, FieldRef, TimeUnit};
use datafusion_common::{Column, DFSchema, DFSchemaRef, DataFusionError, ExprSchema, Result, ScalarValue, TableReference};
use datafusion_expr::planner::{PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning};
use datafusion_expr::{Expr, Extension, LogicalPlan, UserDefinedLogicalNodeCore};
use sqlparser::ast::{self, FunctionArg, FunctionArgExpr, Spanned, TableFactor};
use sqlparser::tokenizer::Span;
use std::collections::HashSet;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use streamshield_engine::plan::{WindowColumn, WindowKind};

pub(crate) const WINDOW_START: &str = "window_start";
pub(crate) const WINDOW_END: &str = "window_end";
pub(crate) const WINDOW_TIME: &str = "window_time";

/// Rows with their windows.
#[derive(Clone, Debug)]
pub(crate) struct WindowNode {
    input: LogicalPlan,
    /// The time attribute, a column of the input.
    time: Expr,
    kind: WindowKind,
    /// Whether anybody reads `window_time`.
    with_time: bool,
    schema: DFSchemaRef,
}

impl WindowNode {
    fn try_new(input: LogicalPlan, time: Expr, kind: WindowKind, with_time: bool) -> Result<Self> {
        let Expr::Column(column) = &time else { return Err(Fault::new("the window's time is not a column").into()) };
        let time_type = input.schema().field_from_column(column)?.data_type().clone();
        let mut fields: Vec<(Option<TableReference>, FieldRef)> =
            input.schema().iter().map(|(qualifier, field)| (qualifier.cloned(), Arc::clone(field))).collect();
        fields.extend(window_fields(&time_type, with_time).into_iter().map(|(field, _)| (None, field)));
        let schema = Arc::new(DFSchema::new_with_metadata(fields, std::collections::HashMap::new())?);
        Ok(WindowNode { input, time, kind, with_time, schema })
    }

    pub fn input(&self) -> &LogicalPlan {
        &self.input
    }
    pub fn kind(&self) -> WindowKind {
        self.kind
    }
    pub fn with_time(&self) -> bool {
        self.with_time
    }
    pub fn without_time(&self) -> Result<Self> {
        WindowNode::try_new(self.input.clone(), self.time.clone(), self.kind, false)
    }
    pub fn time_column(&self) -> Option<&Column> {
        self.time.try_as_col()
    }
    /// Which window column stands at an index of the schema.
    pub fn appended_at(&self, index: usize) -> Option<WindowColumn> {
        match index.checked_sub(self.input.schema().fields().len())? {
            0 => Some(WindowColumn::Start),
            1 => Some(WindowColumn::End),
            2 if self.with_time => Some(WindowColumn::Time),
            _ => None,
        }
    }
}

/// The added columns for a time attribute of this type.
pub(crate) fn window_fields(time_type: &DataType, with_time: bool) -> Vec<(FieldRef, WindowColumn)> {
    let zone = match time_type {
        DataType::Timestamp(_, zone) => zone.clone(),
        _ => None,
    };
    let field = |name: &str| Arc::new(Field::new(name, DataType::Timestamp(TimeUnit::Millisecond, zone.clone()), false));
    let mut fields = vec![(field(WINDOW_START), WindowColumn::Start), (field(WINDOW_END), WindowColumn::End)];
    if with_time {
        fields.push((field(WINDOW_TIME), WindowColumn::Time));
    }
    fields
}

impl PartialEq for WindowNode {
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind && self.with_time == other.with_time && self.time == other.time && self.input == other.input
    }
}
impl Eq for WindowNode {}
impl Hash for WindowNode {
    fn hash<H: Hasher>(&self, state: &mut H) {
        describe(self.kind).hash(state);
        self.time.hash(state);
        self.input.hash(state);
    }
}
impl PartialOrd for WindowNode {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        self.input.partial_cmp(&other.input)
    }
}

impl UserDefinedLogicalNodeCore for WindowNode {
    fn name(&self) -> &str {
        "Windows"
    }
    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }
    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }
    fn expressions(&self) -> Vec<Expr> {
        vec![self.time.clone()]
    }
    fn prevent_predicate_push_down_columns(&self) -> HashSet<String> {
        [WINDOW_START, WINDOW_END, WINDOW_TIME].map(str::to_owned).into()
    }
    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Windows: {} over {}", describe(self.kind), self.time)
    }
    fn with_exprs_and_inputs(&self, mut expressions: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        match (expressions.pop(), inputs.pop()) {
            (Some(time), Some(input)) => WindowNode::try_new(input, time, self.kind, self.with_time),
            _ => Err(Fault::new("a window has one time and one input").into()),
        }
    }
    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        let time = self.input.schema().index_of_column(self.time.try_as_col()?).ok()?;
        let width = self.input.schema().fields().len();
        let mut needed: Vec<usize> = output_columns.iter().copied().filter(|index| *index < width).chain([time]).collect();
        needed.sort_unstable();
        needed.dedup();
        Some(vec![needed])
    }
}

/// A window in a user's words.
pub(crate) fn describe(kind: WindowKind) -> String {
    let (text, offset_ms) = match kind {
        WindowKind::Tumble { size_ms, offset_ms } => (format!("TUMBLE {}", duration(size_ms)), offset_ms),
        WindowKind::Hop { slide_ms, size_ms, offset_ms } => (format!("HOP {} every {}", duration(size_ms), duration(slide_ms)), offset_ms),
        WindowKind::Cumulate { step_ms, max_size_ms, offset_ms } => {
            (format!("CUMULATE to {} by {}", duration(max_size_ms), duration(step_ms)), offset_ms)
        }
    };
    if offset_ms == 0 { text } else { format!("{text} offset {}", duration(offset_ms)) }
}

pub(crate) fn duration(ms: i64) -> String {
    for (unit_ms, unit) in [(86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1000, "s")] {
        if ms % unit_ms == 0 && ms != 0 {
            return format!("{} {unit}", ms / unit_ms);
        }
    }
    format!("{ms} ms")
}

/// How far the clock moves before a window over it can close.
pub(crate) fn granularity_ms(kind: WindowKind) -> u64 {
    let ms = match kind {
        WindowKind::Tumble { size_ms, .. } => size_ms,
        WindowKind::Hop { slide_ms, .. } => slide_ms,
        WindowKind::Cumulate { step_ms, .. } => step_ms,
    };
    ms.unsigned_abs()
}

/// Plans what stands in `FROM`, before DataFusion does.
#[derive(Debug)]
pub(crate) struct Relations;

impl RelationPlanner for Relations {
    fn plan_relation(&self, relation: TableFactor, context: &mut dyn RelationPlannerContext) -> Result<RelationPlanning> {
        let span = relation.span();
        if unnest::is_folded(&relation) {
            let plan = unnest::plan(relation, context).map_err(|fault| DataFusionError::from(fault.or_at(span)))?;
            return Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(plan, None))));
        }
        let (call, alias) = match relation {
            TableFactor::Table { ref name, ref version, ref sample, ref with_hints, .. }
                if version.is_some() || sample.is_some() || !with_hints.is_empty() =>
            {
                return Err(refuse_table(name, version.is_some()).or_at(span).into());
            }
            TableFactor::Table { name, alias, args: Some(arguments), .. } => (Call::new(&name, arguments.args, span), alias),
            TableFactor::Function { name, args, alias, .. } => (Call::new(&name, args, span), alias),
            TableFactor::TableFunction { expr: ast::Expr::Function(function), alias } => {
                let arguments = match function.args {
                    ast::FunctionArguments::List(list) => list.args,
                    _ => Vec::new(),
                };
                (Call::new(&function.name, arguments, span), alias)
            }
            TableFactor::MatchRecognize { .. } => {
                return Err(Fault::unsupported("MATCH_RECOGNIZE", "").at(span).into());
            }
            TableFactor::Table { .. } | TableFactor::Derived { .. } | TableFactor::NestedJoin { .. } | TableFactor::UNNEST { .. } => {
                return Ok(RelationPlanning::Original(Box::new(relation)));
            }
            _ => return Err(Fault::unsupported("this kind of table", "").at(span).into()),
        };
        let plan = call.plan(context).map_err(|fault| DataFusionError::from(fault.or_at(span)))?;
        Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(plan, alias))))
    }
}

fn refuse_table(name: &ast::ObjectName, is_versioned: bool) -> Fault {
    if is_versioned {
        return Fault::unsupported(format!("a temporal join (`{name} FOR SYSTEM_TIME AS OF …`)"), "");
    }
    Fault::unsupported(format!("a sample or hint at table `{name}`"), "")
}

/// A table function with its arguments.
struct Call {
    name: String,
    arguments: Vec<FunctionArg>,
    span: Span,
}

impl Call {
    fn new(name: &ast::ObjectName, arguments: Vec<FunctionArg>, span: Span) -> Self {
        Call { name: name.to_string().to_uppercase(), arguments, span }
    }

    fn plan(self, context: &mut dyn RelationPlannerContext) -> Checked<LogicalPlan> {
        let parameters: &[&str] = match self.name.as_str() {
            "TUMBLE" => &["DATA", "TIMECOL", "SIZE", "OFFSET"],
            "HOP" => &["DATA", "TIMECOL", "SLIDE", "SIZE", "OFFSET"],
            "CUMULATE" => &["DATA", "TIMECOL", "STEP", "SIZE", "OFFSET"],
            "SESSION" => {
                return Err(Fault::unsupported("a SESSION window", "TUMBLE, HOP and CUMULATE are").at(self.span));
            }
            name => {
                return Err(Fault::new(format!("there is no table function {name}"))
                    .hint("there are: TUMBLE, HOP, CUMULATE, UNNEST")
                    .at(self.span));
            }
        };
        let arguments = assign_arguments(&self.name, parameters, self.arguments, self.span)?;
        let mut arguments = arguments.into_iter();
        let missing = || Fault::new(format!("{} needs the arguments {}", self.name, parameters.join(", "))).at(self.span);
        let data = arguments.next().flatten().ok_or_else(missing)?;
        let descriptor = arguments.next().flatten().ok_or_else(missing)?;
        let input = context.plan(data_relation(data)?)?;
        let time = time_column(&descriptor, &input)?;
        let mut lengths = Vec::new();
        for (argument, parameter) in arguments.zip(&parameters[2..]) {
            lengths.push(match argument {
                Some(argument) => interval_ms(argument, context)?,
                None if *parameter == "OFFSET" => 0,
                None => return Err(missing()),
            });
        }
        let kind = window_kind(&self.name, &lengths).map_err(|fault| fault.at(self.span))?;
        windowed(input, time, kind)
    }
}

/// Puts the window's node above its input.
fn windowed(input: LogicalPlan, time: Column, kind: WindowKind) -> Checked<LogicalPlan> {
    for name in [WINDOW_START, WINDOW_END, WINDOW_TIME] {
        if input.schema().has_column_with_unqualified_name(name) {
            return Err(Fault::new(format!("the window's input already has a column `{name}`"))
                .hint(format!("rename it in the inner query: `{name} AS …`")));
        }
    }
    let node = WindowNode::try_new(input, Expr::Column(time), kind, true)?;
    Ok(LogicalPlan::Extension(Extension { node: Arc::new(node) }))
}

/// Positional or named arguments in the order of the parameters; the last may be missing.
fn assign_arguments(function: &str, parameters: &[&str], given: Vec<FunctionArg>, span: Span) -> Checked<Vec<Option<ast::Expr>>> {
    let mut slots: Vec<Option<ast::Expr>> = vec![None; parameters.len()];
    for (position, argument) in given.into_iter().enumerate() {
        let (slot, value) = match argument {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(value)) => (position, value),
            FunctionArg::Named { name, arg: FunctionArgExpr::Expr(value), .. } => {
                let wanted = if name.value.eq_ignore_ascii_case("GAP") { "SIZE".into() } else { name.value.to_uppercase() };
                let slot = parameters.iter().position(|parameter| *parameter == wanted).ok_or_else(|| {
                    Fault::new(format!("{function} has no argument {}", name.value))
                        .hint(format!("there are: {}", parameters.join(", ")))
                        .at(name.span)
                })?;
                (slot, value)
            }
            other => return Err(Fault::new(format!("`{other}` cannot be an argument of {function}")).at(span)),
        };
        match slots.get_mut(slot) {
            Some(free @ None) => *free = Some(value),
            _ => return Err(Fault::new(format!("{function} takes the arguments {}", parameters.join(", "))).at(span)),
        }
    }
    Ok(slots)
}

/// The relation that a data argument names: a table, a view or a query in parentheses.
fn data_relation(argument: ast::Expr) -> Checked<TableFactor> {
    let span = argument.span();
    let name = match argument {
        ast::Expr::Identifier(name) => vec![name],
        ast::Expr::CompoundIdentifier(names) => names,
        ast::Expr::Subquery(subquery) => return Ok(TableFactor::Derived { lateral: false, subquery, alias: None, sample: None }),
        ast::Expr::Nested(inner) => return data_relation(*inner),
        other => return Err(Fault::new(format!("`{other}` is not a table")).hint("write TABLE name, or a query in parentheses").at(span)),
    };
    Ok(TableFactor::Table {
        name: ast::ObjectName::from(name),
        alias: None,
        args: None,
        with_hints: Vec::new(),
        version: None,
        with_ordinality: false,
        partitions: Vec::new(),
        json_path: None,
        sample: None,
        index_hints: Vec::new(),
    })
}

/// The column of `DESCRIPTOR(column)`, which must be a time attribute.
fn time_column(descriptor: &ast::Expr, input: &LogicalPlan) -> Checked<Column> {
    let span = descriptor.span();
    let column = match descriptor {
        ast::Expr::Function(function) if function.name.to_string().eq_ignore_ascii_case("DESCRIPTOR") => match &function.args {
            ast::FunctionArguments::List(list) => match list.args.as_slice() {
                [FunctionArg::Unnamed(FunctionArgExpr::Expr(column))] => column,
                _ => return Err(Fault::new("DESCRIPTOR takes one column").at(span)),
            },
            _ => return Err(Fault::new("DESCRIPTOR takes one column").at(span)),
        },
        other => other,
    };
    let column = match column {
        ast::Expr::Identifier(name) => Column::from_name(&name.value),
        ast::Expr::CompoundIdentifier(names) if names.len() == 2 => Column::new(Some(names[0].value.clone()), &names[1].value),
        other => return Err(Fault::new(format!("`{other}` is not a column")).hint("write DESCRIPTOR(column)").at(span)),
    };
    let index = input.schema().maybe_index_of_column(&column).or_else(|| input.schema().index_of_column_by_name(None, &column.name));
    let Some(index) = index else {
        let names: Vec<String> = input.schema().fields().iter().map(|field| field.name().clone()).collect();
        let fault = Fault::new(format!("there is no column `{}`", column.name)).at(span);
        return Err(match crate::error::nearest(&column.name, names.iter().map(String::as_str)) {
            Some(near) => fault.hint(format!("did you mean `{near}`? Names are case-sensitive")),
            None => fault.hint(format!("there are: {}", names.join(", "))),
        });
    };
    let (qualifier, field) = input.schema().qualified_field(index);
    match time::role(input, index) {
        Some(TimeRole::EventTime | TimeRole::ProcessingTime | TimeRole::Window(_, WindowColumn::Time, _)) => {
            Ok(Column::new(qualifier.cloned(), field.name()))
        }
        Some(TimeRole::Window(..)) => {
            Err(Fault::new(format!("`{}` is a window's bound, not a time attribute", column.name)).hint("use `window_time`").at(span))
        }
        None if matches!(field.data_type(), DataType::Timestamp(..)) => Err(Fault::new(format!(
            "`{}` is not a time attribute",
            column.name
        ))
        .hint(format!(
            "declare `WATERMARK FOR {0} AS {0} - INTERVAL '5' SECOND` in its table; an expression over a time attribute is none any more",
            column.name
        ))
        .at(span)),
        None => Err(Fault::new(format!("`{}` is {}, not a time attribute", column.name, words(field.data_type())))
            .hint("windows need the column of the table's WATERMARK, or a column `AS PROCTIME()`")
            .at(span)),
    }
}

/// An interval's length; months have none.
fn interval_ms(argument: ast::Expr, context: &mut dyn RelationPlannerContext) -> Checked<i64> {
    let span = argument.span();
    let text = argument.to_string();
    let not_interval =
        || Fault::new(format!("`{text}` is not an interval of days, hours, minutes, seconds")).hint("write INTERVAL '10' SECOND").at(span);
    literal_ms(&context.sql_to_expr(argument, &DFSchema::empty())?).ok_or_else(not_interval)
}

fn literal_ms(expression: &Expr) -> Option<i64> {
    match expression {
        Expr::Literal(ScalarValue::IntervalMonthDayNano(Some(value)), _) if value.months == 0 && value.nanoseconds % 1_000_000 == 0 => {
            Some(i64::from(value.days) * 86_400_000 + value.nanoseconds / 1_000_000)
        }
        Expr::Literal(ScalarValue::IntervalDayTime(Some(value)), _) => {
            Some(i64::from(value.days) * 86_400_000 + i64::from(value.milliseconds))
        }
        Expr::Negative(inner) => literal_ms(inner).map(|ms| -ms),
        _ => None,
    }
}

/// `lengths` as in the function's parameters.
fn window_kind(function: &str, lengths: &[i64]) -> Checked<WindowKind> {
    let positive =
        |ms: i64, what: &str| if ms > 0 { Ok(ms) } else { Err(Fault::new(format!("the {what} of {function} must be positive"))) };
    match (function, lengths) {
        ("TUMBLE", &[size_ms, offset_ms]) => {
            Ok(WindowKind::Tumble { size_ms: positive(size_ms, "size")?, offset_ms: offset_ms.rem_euclid(size_ms) })
        }
        ("HOP", &[slide_ms, size_ms, offset_ms]) => {
            let (slide_ms, size_ms) = (positive(slide_ms, "slide")?, positive(size_ms, "size")?);
            if slide_ms > size_ms {
                return Err(Fault::new("HOP's slide is longer than its size").hint("the order is HOP(data, time, slide, size)"));
            }
            Ok(WindowKind::Hop { slide_ms, size_ms, offset_ms: offset_ms.rem_euclid(slide_ms) })
        }
        ("CUMULATE", &[step_ms, max_size_ms, offset_ms]) => {
            let (step_ms, max_size_ms) = (positive(step_ms, "step")?, positive(max_size_ms, "size")?);
            if max_size_ms % step_ms != 0 {
                return Err(
                    Fault::new("CUMULATE's size is not a multiple of its step").hint("the order is CUMULATE(data, time, step, size)")
                );
            }
            Ok(WindowKind::Cumulate { step_ms, max_size_ms, offset_ms: offset_ms.rem_euclid(max_size_ms) })
        }
        _ => Err(Fault::new(format!("the arguments of {function} do not fit"))),
    }
}
