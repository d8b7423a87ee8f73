//! The schemas of a job graph fit, operator by operator: what each one says of its input is what the one before it gives.

use arrow_schema::{Field, FieldRef, Schema, SchemaRef};
use std::sync::Arc;
use streamshield_engine::plan::{
    Expressions, JobPlan, LATE_COLUMN, Operator, StageInput, StageOutput, StagePlan, WATERMARK_COLUMN, WindowColumn, now_field, seed_field,
};

pub(super) fn check(plan: &JobPlan) {
    for (index, stage) in plan.stages.iter().enumerate() {
        assert_eq!(stage.id.0 as usize, index);
        let mut schema = input_schema(plan, stage);
        for operator in &stage.operators {
            schema = after(operator, &schema, &stage.name);
        }
        match &stage.output {
            StageOutput::Sink(sink) => {
                assert_eq!(sink.schema, schema, "{}: the sink", stage.name);
                assert!(
                    sink.schema
                        .fields()
                        .iter()
                        .zip(&sink.columns)
                        .all(|(field, column)| field.name() == column.field.name() && field.data_type() == column.field.data_type())
                );
            }
            StageOutput::Exchange(id) => {
                let exchange = &plan.exchanges[id.0 as usize];
                assert_eq!(exchange.schema, schema, "{}: the exchange", stage.name);
                assert!(exchange.upstream.contains(&stage.id) && exchange.downstream > stage.id);
                assert!(exchange.keys.iter().all(|key| *key < schema.fields().len()));
            }
        }
    }
}

fn input_schema(plan: &JobPlan, stage: &StagePlan) -> SchemaRef {
    match &stage.input {
        StageInput::Exchange(id) => {
            assert_eq!(plan.exchanges[id.0 as usize].downstream, stage.id);
            Arc::clone(&plan.exchanges[id.0 as usize].schema)
        }
        StageInput::Source(source) => {
            expect_types(&source.project.expressions, &source.input_schema, &source.project.schema, &stage.name);
            let mut fields = source.project.schema.fields().to_vec();
            if source.watermark.is_some() {
                fields.push(Arc::new(Field::new(WATERMARK_COLUMN, arrow_schema::DataType::Int64, false)));
            }
            Arc::new(Schema::new(fields))
        }
    }
}

/// The expressions give the types that the output says, over the input with what they ask of the epoch.
fn expect_types(expressions: &Expressions, input: &SchemaRef, output: &SchemaRef, stage: &str) {
    let mut fields: Vec<FieldRef> = input.fields().to_vec();
    fields.extend(expressions.needs_now.then(now_field));
    fields.extend(expressions.needs_seed.then(seed_field));
    let input = Schema::new(fields);
    assert_eq!(expressions.list.len(), output.fields().len(), "{stage}");
    for (expression, field) in expressions.list.iter().zip(output.fields()) {
        assert_eq!(&expression.data_type(&input).expect("a type"), field.data_type(), "{stage}: {expression}");
        assert!(streamshield_core::table::is_supported_type(field.data_type()), "{stage}: {expression} is {}", field.data_type());
        for column in datafusion_physical_expr::utils::collect_columns(expression) {
            assert_eq!(input.field(column.index()).name(), column.name(), "{stage}: {expression}");
        }
    }
}

fn after(operator: &Operator, input: &SchemaRef, stage: &str) -> SchemaRef {
    match operator {
        Operator::Filter(_) => Arc::clone(input),
        Operator::Project(projection) => {
            expect_types(&projection.expressions, input, &projection.schema, stage);
            Arc::clone(&projection.schema)
        }
        Operator::Unnest(unnest) => {
            let mut kept = input.fields().to_vec();
            kept.remove(unnest.list_column);
            assert_eq!(kept.as_slice(), &unnest.schema.fields()[..kept.len()], "{stage}");
            Arc::clone(&unnest.schema)
        }
        Operator::Expand(expand) => {
            expand.projections.iter().for_each(|projection| expect_types(projection, input, &expand.schema, stage));
            Arc::clone(&expand.schema)
        }
        Operator::AssignWindows(windows) => {
            let kept =
                input.fields().iter().enumerate().filter(|(index, _)| Some(*index) != windows.watermark_column).map(|(_, field)| field);
            let expected: Vec<FieldRef> = kept.chain(windows.appended.iter().map(|(field, _)| field)).cloned().collect();
            assert_eq!(windows.schema.fields().to_vec(), expected, "{stage}");
            if let Some(index) = windows.watermark_column {
                assert_eq!(input.field(index).name(), WATERMARK_COLUMN);
                assert!(windows.appended.iter().any(|(_, column)| *column == WindowColumn::Late));
            }
            Arc::clone(&windows.schema)
        }
        Operator::PartialAggregate(aggregate) => {
            assert_eq!(&aggregate.input_schema, input, "{stage}");
            if let Some(index) = aggregate.late_column {
                assert_eq!(input.field(index).name(), LATE_COLUMN);
            }
            for call in &aggregate.calls {
                let Some(first) = call.merges_state_at else { continue };
                for (offset, state) in call.state_fields.iter().enumerate() {
                    assert_eq!(input.field(first + offset).data_type(), state.data_type(), "{stage}: {}", call.display);
                }
            }
            Arc::clone(&aggregate.partial_schema)
        }
        Operator::WindowAggregate(aggregate) => {
            assert_eq!(&aggregate.partial_schema, input, "{stage}");
            Arc::clone(&aggregate.output_schema)
        }
    }
}
