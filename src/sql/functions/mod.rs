//! The functions that a query may call: DataFusion's, and Flink's where the name or the meaning differs.
//!
//! - [`clock`]: functions that read the epoch's clock or seed;
//! - [`seeded`]: what `RAND()` and `UUID()` become.
//!
//! Names are not case-sensitive. Aggregates whose state grows with their input are refused where they are planned.

pub(crate) mod clock;
mod scalar;
mod seeded;

use datafusion_expr::{AggregateUDF, ScalarUDF};
use std::collections::HashMap;
use std::sync::Arc;

/// All functions by lower-case name.
pub(crate) struct Functions {
    pub scalars: HashMap<String, Arc<ScalarUDF>>,
    pub aggregates: HashMap<String, Arc<AggregateUDF>>,
}

impl Functions {
    pub fn new() -> Self {
        let mut scalars = HashMap::new();
        let theirs = datafusion_functions::all_default_functions().into_iter().chain(datafusion_functions_nested::all_default_nested_functions());
        // Ours come last: they replace what has the same name.
        for function in theirs.chain(clock::functions()) {
            for name in function.aliases() {
                scalars.insert(name.to_lowercase(), Arc::clone(&function));
            }
            scalars.insert(function.name().to_lowercase(), function);
        }
        let mut aggregates = HashMap::new();
        for function in datafusion_functions_aggregate::all_default_aggregate_functions() {
            for name in function.aliases() {
                aggregates.insert(name.to_lowercase(), Arc::clone(&function));
            }
            aggregates.insert(function.name().to_lowercase(), function);
        }
        Functions { scalars, aggregates }
    }
}
