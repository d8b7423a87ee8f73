//! What becomes of the parts of a query in the job graph.

use super::{PARALLELISM, explained, planned};
use crate::explain;
use streamshield_engine::plan::{LATE_COLUMN, Operator};

const TABLES: &str = "
CREATE TABLE orders (
  id BIGINT NOT NULL, customer STRING, amount DECIMAL(10, 2), units INT, tags ARRAY<STRING>, lines ARRAY<ROW<sku STRING, n INT>>,
  millis BIGINT, `partition` INT METADATA VIRTUAL, written TIMESTAMP_LTZ(3) METADATA FROM 'timestamp',
  ts AS TO_TIMESTAMP_LTZ(millis, 3), pt AS PROCTIME(),
  WATERMARK FOR ts AS ts - INTERVAL '5' SECOND
) WITH ('connector' = 'kafka', 'topic' = 'orders', 'scan.watermark.idle-timeout' = '10 s');
";

fn with_sink(sink_columns: &str, rest: &str) -> String {
    format!("{TABLES}CREATE TABLE result ({sink_columns}) WITH ('connector' = 'kafka', 'topic' = 'result');\n{rest}")
}

fn stages(sink_columns: &str, select: &str) -> String {
    explained(&with_sink(sink_columns, &format!("INSERT INTO result {select};")))
}

#[test]
fn a_single_distinct_count_takes_two_levels_without_a_tag() {
    insta::assert_snapshot!(stages(
        "customer STRING, n BIGINT",
        "SELECT customer, COUNT(DISTINCT id) FROM TUMBLE(TABLE orders, DESCRIPTOR(ts), INTERVAL '1' MINUTE) GROUP BY customer, window_start, window_end",
    ));
}

#[test]
fn of_the_copies_of_a_row_for_distinct_counts_one_counts() {
    let select = "SELECT COUNT(DISTINCT id), COUNT(DISTINCT customer) FROM TUMBLE(TABLE orders, DESCRIPTOR(ts), INTERVAL '1' MINUTE)
         GROUP BY window_start, window_end";
    let planned = planned(&with_sink("ids BIGINT, customers BIGINT", &format!("INSERT INTO result {select};")));
    let copies = planned.plan.stages[0].operators.iter().find_map(|operator| match operator {
        Operator::Expand(expand) => Some(&expand.projections),
        _ => None,
    });
    let rows = copies.expect("rows are copied").iter().map(|copy| copy.list.last().expect("columns").to_string());
    assert_eq!(rows.collect::<Vec<_>>(), ["1", "0"]);
}

#[test]
fn the_legacy_group_window_is_the_table_function() {
    insta::assert_snapshot!(stages(
        "customer STRING, n BIGINT, s TIMESTAMP(3), e TIMESTAMP(3), r TIMESTAMP_LTZ(3)",
        "SELECT o.customer, COUNT(*), TUMBLE_START(ts, INTERVAL '1' MINUTE), TUMBLE_END(ts, INTERVAL '1' MINUTE), TUMBLE_ROWTIME(ts, INTERVAL '1' MINUTE)
         FROM orders AS o GROUP BY o.customer, TUMBLE(ts, INTERVAL '1' MINUTE)",
    ));
}

#[test]
fn processing_time_windows_follow_the_clock() {
    insta::assert_snapshot!(stages(
        "customer STRING, n BIGINT",
        "SELECT customer, COUNT(*) FROM TUMBLE(TABLE orders, DESCRIPTOR(pt), INTERVAL '10' SECOND) GROUP BY customer, window_start, window_end",
    ));
}

#[test]
fn a_cumulating_window_with_offset_keeps_its_numbers() {
    insta::assert_snapshot!(stages(
        "n BIGINT",
        "SELECT COUNT(*) FROM TABLE(CUMULATE(DATA => TABLE orders, TIMECOL => DESCRIPTOR(ts), STEP => INTERVAL '2' MINUTE, SIZE => INTERVAL '10' MINUTES, `OFFSET` => INTERVAL '1' MINUTE))
         GROUP BY window_start, window_end HAVING COUNT(*) > 1",
    ));
}

#[test]
fn a_window_over_window_time_cascades() {
    let views = "CREATE VIEW minutes AS SELECT customer, SUM(units) AS units, window_time AS rt
         FROM TUMBLE(TABLE orders, DESCRIPTOR(ts), INTERVAL '1' MINUTE) GROUP BY customer, window_start, window_end, window_time;
       INSERT INTO result SELECT customer, SUM(units) FROM TUMBLE(TABLE minutes, DESCRIPTOR(rt), INTERVAL '1' HOUR) GROUP BY customer, window_start, window_end;";
    insta::assert_snapshot!(explained(&with_sink("customer STRING, units INT", views)));
}

#[test]
fn a_union_gives_a_stage_per_branch() {
    insta::assert_snapshot!(stages(
        "customer STRING, n BIGINT",
        "SELECT customer, COUNT(*) FROM TUMBLE(TABLE (SELECT customer, ts FROM orders WHERE units > 1 UNION ALL SELECT tags[1], ts FROM orders), DESCRIPTOR(ts), INTERVAL '1' MINUTE)
         GROUP BY customer, window_start, window_end",
    ));
}

#[test]
fn a_union_has_the_nulls_of_all_its_branches() {
    for (first, second, key, sink) in [
        ("'web' AS src", "customer", "src", "src STRING, n BIGINT"),
        ("id AS src", "millis", "src", "src BIGINT, n BIGINT"),
        ("id", "millis", "id", "id BIGINT, n BIGINT"),
    ] {
        let union = format!("SELECT {first}, ts FROM orders UNION ALL SELECT {second}, ts FROM orders");
        let select = format!(
            "SELECT {key}, COUNT(*) FROM TUMBLE(TABLE ({union}), DESCRIPTOR(ts), INTERVAL '1' MINUTE) GROUP BY {key}, window_start, window_end"
        );
        let job = planned(&with_sink(sink, &format!("INSERT INTO result {select};")));
        assert_eq!(job.plan.exchanges[0].upstream.len(), 2);
        assert!(job.plan.exchanges[0].schema.field(0).is_nullable(), "{first}");
    }
}

/// Only rows of a scan can be late; `planned` checks that both branches give what the exchange takes.
#[test]
fn a_scan_and_an_aggregation_meet_in_one_exchange() {
    let window = "TUMBLE(TABLE orders, DESCRIPTOR(ts), INTERVAL '1' MINUTE)";
    let scan = format!("SELECT customer, window_start, window_end, CAST(1 AS BIGINT) AS c FROM {window}");
    let counts =
        format!("SELECT customer, window_start, window_end, COUNT(*) AS c FROM {window} GROUP BY customer, window_start, window_end");
    for (first, second) in [(&scan, &counts), (&counts, &scan)] {
        for call in ["SUM(c)", "COUNT(DISTINCT c)"] {
            let select =
                format!("SELECT customer, {call} FROM ({first} UNION ALL {second}) AS u GROUP BY customer, window_start, window_end");
            let job = planned(&with_sink("customer STRING, n BIGINT", &format!("INSERT INTO result {select};")));
            let exchange = job.plan.exchanges.iter().find(|exchange| exchange.upstream.len() == 2).expect("two branches meet");
            assert!(exchange.schema.index_of(LATE_COLUMN).is_ok());
        }
    }
}

#[test]
fn the_branches_of_a_union_read_the_same_clock() {
    let select = "SELECT COUNT(*) FILTER (WHERE ts < CURRENT_TIMESTAMP)
         FROM TUMBLE(TABLE (SELECT ts FROM orders WHERE units > 1 UNION ALL SELECT ts FROM orders), DESCRIPTOR(ts), INTERVAL '1' MINUTE)
         GROUP BY window_start, window_end";
    let job = planned(&with_sink("n BIGINT", &format!("INSERT INTO result {select};")));
    for stage in &job.plan.exchanges[0].upstream {
        let operators = &job.plan.stages[stage.0 as usize].operators;
        assert!(operators.iter().any(|operator| matches!(operator, Operator::Project(project) if project.expressions.needs_now)));
    }
}

#[test]
fn bounds_of_another_window_are_keys() {
    let views = "CREATE VIEW minutes AS SELECT window_start AS minute_start, window_time AS rt FROM TUMBLE(TABLE orders, DESCRIPTOR(ts), INTERVAL '1' MINUTE);
       INSERT INTO result SELECT minute_start, window_start, COUNT(*) FROM TUMBLE(TABLE minutes, DESCRIPTOR(rt), INTERVAL '1' HOUR)
       GROUP BY minute_start, window_start, window_end;";
    let job = planned(&with_sink("m TIMESTAMP_LTZ(3), h TIMESTAMP_LTZ(3), n BIGINT", views));
    let exchange = &job.plan.exchanges[0];
    assert_eq!(exchange.keys, [0]);
    assert_eq!(exchange.schema.field(0).name(), "minute_start");
}

#[test]
fn unnest_gives_a_row_per_element_and_carries_only_what_is_read() {
    insta::assert_snapshot!(stages(
        "id BIGINT, tag STRING",
        "SELECT id, tag FROM orders CROSS JOIN UNNEST(tags) AS t(tag) WHERE tag <> ''"
    ));
    insta::assert_snapshot!(stages(
        "sku STRING, n INT",
        "SELECT sku, SUM(n) FROM TUMBLE(TABLE (SELECT ts, l.sku, l.n FROM orders CROSS JOIN UNNEST(lines) AS l(sku, n)), DESCRIPTOR(ts), INTERVAL '1' MINUTE)
         GROUP BY sku, window_start, window_end",
    ));
}

#[test]
fn averages_and_sums_have_flinks_types() {
    insta::assert_snapshot!(stages(
        "a INT, s INT, d DECIMAL(38, 2), f STRING",
        "SELECT AVG(units), SUM(units), SUM(amount), FIRST_VALUE(customer) FROM TUMBLE(TABLE orders, DESCRIPTOR(ts), INTERVAL '1' MINUTE) GROUP BY window_start, window_end",
    ));
}

#[test]
fn a_sum_and_an_average_of_floats_are_floats() {
    let text = stages(
        "s FLOAT, a FLOAT",
        "SELECT SUM(CAST(units AS FLOAT)), AVG(CAST(units AS FLOAT)) FROM TUMBLE(TABLE orders, DESCRIPTOR(ts), INTERVAL '1' MINUTE)
         GROUP BY window_start, window_end",
    );
    assert!(text.contains("AS Float32) as s") && text.contains("AS Float32) as a"), "{text}");
}

/// DECIMAL(38, 6) without a cast around it.
#[test]
fn an_average_of_decimals_has_flinks_digits() {
    let text = stages(
        "a DECIMAL(38, 6)",
        "SELECT AVG(amount) FROM TUMBLE(TABLE orders, DESCRIPTOR(ts), INTERVAL '1' MINUTE) GROUP BY window_start, window_end",
    );
    assert!(text.contains("sum(orders.amount), count(orders.amount)") && text.contains("project __decimal_divide(CAST("), "{text}");
}

/// DECIMAL(38, 2) divided by an INT is a DECIMAL(38, 6): no cast is around it.
#[test]
fn a_sum_of_decimals_has_38_digits_also_in_a_view() {
    let sum =
        "SELECT SUM(amount) AS total FROM TUMBLE(TABLE orders, DESCRIPTOR(ts), INTERVAL '1' MINUTE) GROUP BY window_start, window_end";
    let query = format!("INSERT INTO result SELECT total / 3 FROM ({sum}) AS sums;");
    let view = format!("CREATE VIEW sums AS {sum};\nINSERT INTO result SELECT total / 3 FROM sums;");
    for statements in [query, view] {
        let text = explained(&with_sink("a DECIMAL(38, 6)", &statements));
        assert!(text.contains("project __decimal_divide(") && text.contains("AS Decimal128(38, 2))"), "{text}");
    }
}

#[test]
fn what_is_computed_from_a_case_or_a_union_goes_by_their_common_type() {
    let average = |sink: &str, argument: &str| {
        let select = format!(
            "SELECT AVG({argument}) FROM TUMBLE(TABLE orders, DESCRIPTOR(ts), INTERVAL '1' MINUTE) GROUP BY window_start, window_end"
        );
        stages(sink, &select)
    };
    let text = average("a DECIMAL(38, 6)", "IF(units > 1, 0.0, amount)");
    assert!(text.contains("__decimal_divide(CAST(") && text.contains("AS Decimal128(38, 2))"), "{text}");
    for argument in ["CASE WHEN units > 1 THEN 0.0 ELSE CAST(amount AS DOUBLE) END", "IF(units > 1, 0, CAST(amount AS DOUBLE))"] {
        let text = average("a DOUBLE", argument);
        assert!(text.contains("avg(") && !text.contains("__decimal_divide") && !text.contains("AS Int64"), "{text}");
    }
    for (sink, select, expected) in [
        ("x DECIMAL(23, 13)", "SELECT x / 3 FROM (SELECT IF(units > 1, 0, amount) AS x FROM orders) AS a", "__decimal_divide("),
        (
            "x DECIMAL(23, 13)",
            "SELECT x / 3 FROM (SELECT units AS x FROM orders UNION ALL SELECT amount FROM orders) AS a",
            "__decimal_divide(",
        ),
        // 22 digits behind the point times 22 of them: DataFusion has planned it with 6 each.
        ("x DECIMAL(38, 21)", "SELECT x * x FROM (SELECT amount / id AS x FROM orders) AS a", "__decimal_multiply("),
        (
            "x STRING",
            "SELECT CAST(x AS STRING) FROM (SELECT amount AS x FROM orders UNION ALL SELECT CAST(amount AS DOUBLE) FROM orders) AS a",
            "__float_text(",
        ),
    ] {
        let text = stages(sink, select);
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn metadata_and_clock_columns_are_read_and_written() {
    insta::assert_snapshot!(stages(
        "id BIGINT, p INT, seen TIMESTAMP_LTZ(3), chance DOUBLE, written TIMESTAMP_LTZ(3) METADATA FROM 'timestamp', never INT METADATA VIRTUAL",
        "SELECT id, `partition`, CURRENT_TIMESTAMP, RAND(), written FROM orders",
    ));
}

#[test]
fn missing_target_columns_are_null() {
    insta::assert_snapshot!(explained(&with_sink(
        "id BIGINT, note STRING, units BIGINT",
        "INSERT INTO result (units, id) SELECT units, id FROM orders;"
    )));
}

#[test]
fn two_inserts_from_one_view_are_two_pipelines() {
    let text = "CREATE TABLE other (id BIGINT) WITH (connector = 'kafka', topic = 'other');
      CREATE VIEW big (number) AS SELECT id FROM orders WHERE units > 100;
      EXECUTE STATEMENT SET BEGIN INSERT INTO result SELECT number FROM big; INSERT INTO other SELECT number FROM big; END;";
    insta::assert_snapshot!(explained(&with_sink("id BIGINT", text)));
}

#[test]
fn windows_without_an_aggregation_are_stateless() {
    insta::assert_snapshot!(stages(
        "id BIGINT, e TIMESTAMP(3)",
        "SELECT id, window_end FROM TUMBLE(TABLE orders, DESCRIPTOR(ts), INTERVAL '1' MINUTE)"
    ));
}

#[test]
fn a_row_is_read_even_where_no_column_is() {
    insta::assert_snapshot!(stages("a STRING", "SELECT 'x' FROM orders WHERE units > 1"));
    insta::assert_snapshot!(stages(
        "n BIGINT",
        "SELECT COUNT(*) FROM TUMBLE(TABLE orders, DESCRIPTOR(pt), INTERVAL '1' MINUTE) GROUP BY window_start, window_end"
    ));
}

#[test]
fn names_keep_their_case() {
    let text = "CREATE TABLE `Mixed` (`userId` BIGINT, userid STRING) WITH ('connector' = 'kafka', 'topic' = 'm');
      INSERT INTO result SELECT userId FROM Mixed WHERE userid = 'a';";
    insta::assert_snapshot!(explained(&with_sink("id BIGINT", text)));
}

#[test]
fn every_type_of_flink_has_its_arrow_type() {
    let columns = "a BOOLEAN NOT NULL, b TINYINT, c SMALLINT, d INTEGER, e BIGINT, f FLOAT, g DOUBLE PRECISION, h DECIMAL, i NUMERIC(20, 4), j CHAR(3),
      k VARCHAR(9), l STRING, m BINARY(2), n VARBINARY(3), o BYTES, p DATE, q TIME(3), r TIMESTAMP, s TIMESTAMP(3) WITHOUT TIME ZONE, t TIMESTAMP(9),
      u TIMESTAMP_LTZ(3), v TIMESTAMP(6) WITH LOCAL TIME ZONE, w ARRAY<ROW<x INT NOT NULL, y ARRAY<STRING>>>, z MAP<STRING, BIGINT>, zz INT ARRAY";
    let sql = format!("CREATE TABLE t ({columns}) WITH (connector = 'kafka', topic = 't'); INSERT INTO t SELECT * FROM t;");
    let planned = planned(&sql);
    let types: Vec<String> = planned.tables[0]
        .columns
        .iter()
        .map(|column| format!("{}: {} {}", column.field.name(), column.field.data_type(), column.field.is_nullable()))
        .collect();
    assert!(planned.tables[0].columns.iter().all(|column| streamshield_core::table::is_supported_type(column.field.data_type())));
    insta::assert_snapshot!(types.join("\n"));
}

#[test]
fn settings_are_handed_out() {
    let sql = with_sink("id BIGINT", "SET 'table.exec.source.idle-timeout' = '1 s'; INSERT INTO result SELECT id FROM orders;");
    assert_eq!(planned(&sql).settings.get("table.exec.source.idle-timeout").map(String::as_str), Some("1 s"));
}

#[test]
fn json_and_graphviz_tell_the_same_stages() {
    let sql = with_sink(
        "n BIGINT",
        "INSERT INTO result SELECT COUNT(*) FROM TUMBLE(TABLE orders, DESCRIPTOR(ts), INTERVAL '1' MINUTE) GROUP BY window_start, window_end;",
    );
    let planned = planned(&sql);
    insta::assert_json_snapshot!(explain::json(&planned, PARALLELISM));
    insta::assert_snapshot!(explain::graphviz(&planned, PARALLELISM));
}

/// A change of this number refuses the restart of every running job: raise the semantics version only on purpose.
#[test]
fn the_fingerprint_stays_what_it_was() {
    let sql = with_sink(
        "customer STRING, n BIGINT",
        "INSERT INTO result SELECT customer, COUNT(*) FROM TUMBLE(TABLE orders, DESCRIPTOR(ts), INTERVAL '1' MINUTE) GROUP BY customer, window_start, window_end;",
    );
    let fingerprint = planned(&sql).plan.fingerprint;
    insta::assert_snapshot!(fingerprint.to_string());
    let formatted = sql.replace("SELECT customer", "SELECT /* spelt differently */\n  customer");
    assert_eq!(planned(&formatted).plan.fingerprint, fingerprint);
    assert_ne!(planned(&sql.replace("'1' MINUTE", "'2' MINUTE")).plan.fingerprint, fingerprint);
}
