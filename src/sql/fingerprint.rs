//! What a plan computes, as one number.
//!
//! Made from the plan before DataFusion's analyzer and optimizer have touched it, from the definitions of the tables that are used and from the
//! policies that decide what becomes of a row. Options that only say how to reach a service (`properties.*`) are left out: a new broker
//! address changes nothing in the result.

use crate::PlanOptions;
use crate::catalog::Table;
use datafusion_common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion_expr::LogicalPlan;
use std::collections::BTreeSet;
use std::fmt::Write;
use streamshield_core::ids::PlanFingerprint;
use streamshield_core::table::TableDefinition;

/// Raised whenever the same plan would compute something else. It counts from the first release on: nothing is released yet.
const SEMANTICS_VERSION: u32 = 1;

pub(crate) fn of<'a>(inserts: impl Iterator<Item = (&'a Table, &'a LogicalPlan)>, options: &PlanOptions) -> PlanFingerprint {
    let mut text = format!("semantics {SEMANTICS_VERSION}\nlate {}\nbad {}\n", options.late_rows_to_topic, options.bad_record_policy);
    let mut described = BTreeSet::new();
    for (sink, plan) in inserts {
        describe(&sink.definition, &mut described, &mut text);
        visit_tables(plan, &mut |table| {
            describe(&table.definition, &mut described, &mut text);
            // Writing into a String can't fail.
            let _ = writeln!(text, "computed {:?}", table.computed.iter().flatten().map(ToString::to_string).collect::<Vec<_>>());
            if let Some(watermark) = &table.watermark {
                let _ = writeln!(text, "watermark {} {}", watermark.column, watermark.expression);
            }
        });
        let _ = writeln!(text, "insert into {}\n{}", sink.definition.name, plan.display_indent());
    }
    PlanFingerprint(xxhash_rust::xxh3::xxh3_64(text.as_bytes()))
}

fn describe(table: &TableDefinition, described: &mut BTreeSet<String>, text: &mut String) {
    if !described.insert(table.name.clone()) {
        return;
    }
    let _ = writeln!(text, "table {} key {:?}", table.name, table.primary_key);
    for column in &table.columns {
        let _ = writeln!(text, "  {} {} {} {:?}", column.field.name(), column.field.data_type(), column.field.is_nullable(), column.kind);
    }
    for (key, value) in table.options.iter().filter(|(key, _)| !key.starts_with("properties.")) {
        let _ = writeln!(text, "  {key:?} = {value:?}");
    }
}

fn visit_tables<'a>(plan: &'a LogicalPlan, visit: &mut dyn FnMut(&'a Table)) {
    // The closure never fails.
    let _ = plan.apply(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && let Some(table) = Table::of(scan.source.as_ref())
        {
            visit(table);
        }
        Ok(TreeNodeRecursion::Continue)
    });
}

/// Names of the tables that a plan reads.
pub(crate) fn tables_read(plan: &LogicalPlan) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    visit_tables(plan, &mut |table| {
        names.insert(table.definition.name.clone());
    });
    names
}
