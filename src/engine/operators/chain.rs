//! A stage's operators in a row.
//!
//! Rows are pushed through operator by operator; how the rows came about is kept as long as a batch is on its way ([`Trail`]), so that a row that
//! is refused far down, or by the sink behind the chain, can be blamed on the source row that it was made from.

use crate::operators::assign_windows::AssignWindows;
use crate::operators::partial_aggregate::PartialAggregate;
use crate::operators::rows::{Applied, Expand, Filter, Project, RowMap};
use crate::operators::unnest::Unnest;
use crate::operators::window_aggregate::WindowAggregate;
use crate::operators::{ChainOutput, EpochContext, InputWatermarks, NO_SOURCE_ROW, OperatorError, RejectedRow};
use crate::plan::Operator;
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use std::sync::Arc;
use streamshield_core::ports::state::{RegionState, WindowTableSpec};
use streamshield_core::watermark::Watermark;

/// A stage's operators, built from the plan. Holds only what an epoch has open; the rest is in [`RegionState`].
pub struct Chain {
    links: Vec<Link>,
    schema: SchemaRef,
}

enum Link {
    Filter(Filter),
    Project(Project),
    Unnest(Unnest),
    Expand(Expand),
    AssignWindows(AssignWindows),
    PartialAggregate(Box<PartialAggregate>),
    WindowAggregate(Box<WindowAggregate>),
}

/// Where the rows of a batch come from. It only holds on to what the operators know of a batch anyway, and is looked into when a row is refused:
/// nothing is done per row before.
#[derive(Clone, Debug)]
pub enum Trail {
    /// They are the rows given to [`Chain::process`].
    Source,
    /// A window aggregation or a seal made them.
    Made,
    /// An operator made them from these rows.
    From(Arc<(Trail, RowMap)>),
}

/// What all operators of a run share.
struct Run<'a> {
    input: InputWatermarks,
    epoch: &'a mut EpochContext,
    state: &'a mut dyn RegionState,
    out: &'a mut ChainOutput,
}

impl Chain {
    /// `input_schema` is the scan's or the exchange's.
    pub fn new(operators: &[Operator], input_schema: SchemaRef) -> Result<Chain, OperatorError> {
        let mut schema = input_schema;
        let mut links = Vec::with_capacity(operators.len());
        for operator in operators {
            let (link, output) = Link::new(operator, &schema)?;
            links.push(link);
            schema = output;
        }
        Ok(Chain { links, schema })
    }

    /// Schema of the batches given out.
    pub fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// Tables that the region's state must have.
    pub fn tables(&self) -> Vec<WindowTableSpec> {
        self.windows().map(WindowAggregate::table).collect()
    }

    /// Takes the rows of one step.
    pub fn process(
        &mut self,
        rows: RecordBatch,
        input: InputWatermarks,
        epoch: &mut EpochContext,
        state: &mut dyn RegionState,
        out: &mut ChainOutput,
    ) -> Result<(), OperatorError> {
        let known = out.rejected.len();
        push(&mut self.links, rows, &Trail::Source, &mut Run { input, epoch, state, out })?;
        // A row may be refused several times, once per row that was made of it.
        out.rejected[known..].sort_by_key(|rejected| rejected.row);
        let mut at = 0;
        let mut last = None;
        out.rejected.retain(|rejected| {
            at += 1;
            let again = at > known + 1 && last == Some(rejected.row);
            last = Some(rejected.row);
            !again
        });
        Ok(())
    }

    /// The combined watermark has moved, or windows are still to be emitted: emits up to `max_rows` (at least 1) groups of closed windows, the
    /// earliest window first. True: more remain, call again as a further step.
    ///
    /// A second window aggregation of the chain closes nothing before the first has given it all that belongs there.
    pub fn advance(
        &mut self,
        watermark: Watermark,
        max_rows: usize,
        epoch: &mut EpochContext,
        state: &mut dyn RegionState,
        out: &mut ChainOutput,
    ) -> Result<bool, OperatorError> {
        let mut left = max_rows.max(1);
        for number in 0..self.links.len() {
            let (before, behind) = self.links.split_at_mut(number + 1);
            let Link::WindowAggregate(windows) = &before[number] else { continue };
            while let Some(window) = state.table(windows.operator()).first_closed(watermark) {
                if left == 0 {
                    return Ok(true);
                }
                let drained = state.table(windows.operator()).drain(window, left)?;
                let count = drained.states.first().or(drained.keys.first()).map_or(0, |column| column.len());
                if count == 0 && !drained.finished {
                    return Err(OperatorError::plan("WindowAggregate", "the state gives nothing of a window that it holds"));
                }
                left = left.saturating_sub(count);
                let (rows, refused) = windows.emit(window, drained)?;
                out.rejected.extend(refused.into_iter().map(|reason| RejectedRow { row: NO_SOURCE_ROW, reason }));
                push(behind, rows, &Trail::Made, &mut Run { input: InputWatermarks::START, epoch, state, out })?;
            }
        }
        Ok(false)
    }

    /// End of the epoch: open partials are given out.
    pub fn seal(&mut self, epoch: &mut EpochContext, state: &mut dyn RegionState, out: &mut ChainOutput) -> Result<(), OperatorError> {
        for number in 0..self.links.len() {
            let (before, behind) = self.links.split_at_mut(number + 1);
            let Link::PartialAggregate(partials) = &mut before[number] else { continue };
            for rows in partials.seal()? {
                push(behind, rows, &Trail::Made, &mut Run { input: InputWatermarks::START, epoch, state, out })?;
            }
        }
        Ok(())
    }

    /// Memory of open partials. Takes time in the number of open windows and calls, not of groups.
    pub fn open_bytes(&self) -> usize {
        let bytes = |link: &Link| if let Link::PartialAggregate(partials) = link { partials.open_bytes() } else { 0 };
        self.links.iter().map(bytes).sum()
    }

    /// Whether some window may still be emitted at this watermark.
    pub fn has_closed(&self, watermark: Watermark, state: &mut dyn RegionState) -> bool {
        self.windows().any(|windows| state.table(windows.operator()).first_closed(watermark).is_some())
    }

    fn windows(&self) -> impl Iterator<Item = &WindowAggregate> {
        self.links.iter().filter_map(|link| if let Link::WindowAggregate(windows) = link { Some(&**windows) } else { None })
    }
}

impl Link {
    /// The operator and the schema of its output.
    fn new(operator: &Operator, input: &SchemaRef) -> Result<(Link, SchemaRef), OperatorError> {
        Ok(match operator {
            Operator::Filter(predicate) => (Link::Filter(Filter::new(predicate, input)?), input.clone()),
            Operator::Project(plan) => (Link::Project(Project::new(plan, input)?), plan.schema.clone()),
            Operator::Unnest(plan) => (Link::Unnest(Unnest::new(plan, input)?), plan.schema.clone()),
            Operator::Expand(plan) => (Link::Expand(Expand::new(plan, input)?), plan.schema.clone()),
            Operator::AssignWindows(plan) => (Link::AssignWindows(AssignWindows::new(plan, input)?), plan.schema.clone()),
            Operator::PartialAggregate(plan) => {
                (Link::PartialAggregate(Box::new(PartialAggregate::new(plan, input)?)), plan.partial_schema.clone())
            }
            Operator::WindowAggregate(plan) => (Link::WindowAggregate(Box::new(WindowAggregate::new(plan)?)), plan.output_schema.clone()),
        })
    }
}

/// Pushes a batch through the rest of a chain.
fn push(links: &mut [Link], rows: RecordBatch, trail: &Trail, run: &mut Run<'_>) -> Result<(), OperatorError> {
    if rows.num_rows() == 0 {
        return Ok(());
    }
    let Some((link, rest)) = links.split_first_mut() else {
        run.out.batches.push((rows, trail.clone()));
        return Ok(());
    };
    let applied = match link {
        Link::Filter(filter) => filter.apply(&rows, run.epoch)?,
        Link::Project(project) => project.apply(&rows, run.epoch)?,
        Link::Expand(expand) => expand.apply(&rows, run.epoch)?,
        Link::Unnest(unnest) => unnest.apply(&rows)?,
        Link::AssignWindows(windows) => {
            let (batches, refused) = windows.apply(rows)?;
            run.reject(refused, trail);
            for (rows, map) in batches {
                push(rest, rows, &trail.after(map), run)?;
            }
            return Ok(());
        }
        Link::PartialAggregate(partials) => {
            let folded = partials.process(&rows, run.epoch)?;
            run.reject(folded.refused, trail);
            let Some((rows, kept)) = folded.passed else { return Ok(()) };
            let map = kept.map_or(RowMap::Same, RowMap::Rows);
            return push(rest, rows, &trail.after(map), run);
        }
        Link::WindowAggregate(windows) => return windows.process(&rows, run.input, run.state, &mut run.out.late),
    };
    let Applied { rows, map, refused } = applied;
    run.reject(refused, trail);
    push(rest, rows, &trail.after(map), run)
}

impl Run<'_> {
    fn reject(&mut self, refused: Vec<(usize, String)>, trail: &Trail) {
        self.out.rejected.extend(refused.into_iter().map(|(row, reason)| RejectedRow { row: trail.source_row(row), reason }));
    }
}

impl Trail {
    /// The trail of what an operator has made of the rows.
    fn after(&self, map: RowMap) -> Trail {
        match (self, map) {
            (Trail::Made, _) | (_, RowMap::Same) => self.clone(),
            (_, map) => Trail::From(Arc::new((self.clone(), map))),
        }
    }

    /// The row given to [`Chain::process`] from which a row of the batch was made, or [`NO_SOURCE_ROW`].
    pub fn source_row(&self, row: usize) -> usize {
        match self {
            Trail::Source => row,
            Trail::Made => NO_SOURCE_ROW,
            Trail::From(made) => made.0.source_row(made.1.input_row(row)),
        }
    }
}
