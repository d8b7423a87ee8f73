//! What is refused, with its place and hint.

use super::refused;

const TABLES: &str = "CREATE TABLE bid (auction BIGINT, price BIGINT, `dateTime` TIMESTAMP(3), items ARRAY<INT>, WATERMARK FOR `dateTime` AS `dateTime`) WITH ('connector' = 'kafka', 'topic' = 'bid');
CREATE TABLE result (a BIGINT) WITH ('connector' = 'kafka', 'topic' = 'result');
";

fn insert(select: &str) -> String {
    refused(&format!("{TABLES}INSERT INTO result {select};"))
}

#[test]
fn queries_that_need_what_no_stage_can_do() {
    let window = "TUMBLE(TABLE bid, DESCRIPTOR(`dateTime`), INTERVAL '1' MINUTE)";
    let all = [
        "SELECT b.auction FROM bid AS b JOIN bid AS c ON b.auction = c.auction".to_owned(),
        "SELECT b.auction FROM bid AS b, bid AS c".to_owned(),
        "SELECT b.auction FROM bid AS b LEFT JOIN bid FOR SYSTEM_TIME AS OF b.`dateTime` AS c ON b.auction = c.auction".to_owned(),
        "SELECT auction FROM bid FOR SYSTEM_TIME AS OF TIMESTAMP '2024-01-01 00:00:00'".to_owned(),
        "SELECT auction FROM bid LEFT JOIN UNNEST(items) AS t(i) ON TRUE".to_owned(),
        "SELECT COUNT(*) FROM bid".to_owned(),
        "SELECT COUNT(*) FROM bid GROUP BY auction".to_owned(),
        "SELECT DISTINCT auction FROM bid".to_owned(),
        "SELECT auction FROM bid UNION SELECT price FROM bid".to_owned(),
        "SELECT auction FROM bid INTERSECT SELECT price FROM bid".to_owned(),
        "SELECT auction FROM bid EXCEPT SELECT price FROM bid".to_owned(),
        "SELECT auction FROM bid ORDER BY price".to_owned(),
        "SELECT auction FROM bid LIMIT 10".to_owned(),
        "SELECT SUM(price) OVER (PARTITION BY auction ORDER BY `dateTime`) FROM bid".to_owned(),
        "SELECT auction FROM bid WHERE price = (SELECT MAX(price) FROM bid)".to_owned(),
        "SELECT auction FROM bid WHERE auction IN (SELECT price FROM bid)".to_owned(),
        "SELECT auction FROM bid WHERE EXISTS (SELECT 1 FROM bid)".to_owned(),
        "SELECT * FROM bid MATCH_RECOGNIZE (ORDER BY `dateTime` MEASURES A.price AS p PATTERN (A) DEFINE A AS A.price > 1)".to_owned(),
        "SELECT COUNT(*) FROM SESSION(TABLE bid, DESCRIPTOR(`dateTime`), INTERVAL '1' MINUTE) GROUP BY window_start, window_end".to_owned(),
        "SELECT COUNT(*) FROM bid GROUP BY SESSION(`dateTime`, INTERVAL '1' MINUTE)".to_owned(),
        format!("SELECT COUNT(*) FROM {window} GROUP BY window_start"),
        format!("SELECT COUNT(*) FROM {window} GROUP BY GROUPING SETS ((window_start, window_end), (window_start, window_end, auction))"),
        format!("SELECT CARDINALITY(ARRAY_AGG(price)) FROM {window} GROUP BY window_start, window_end"),
        format!("SELECT MEDIAN(price) FROM {window} GROUP BY window_start, window_end"),
        format!("SELECT COUNT(DISTINCT auction, price) FROM {window} GROUP BY window_start, window_end"),
        "SELECT COUNT(*) FROM TUMBLE(TABLE bid, DESCRIPTOR(price), INTERVAL '1' MINUTE) GROUP BY window_start, window_end".to_owned(),
        "SELECT COUNT(*) FROM TUMBLE(TABLE (SELECT `dateTime` + INTERVAL '1' SECOND AS t FROM bid), DESCRIPTOR(t), INTERVAL '1' MINUTE) GROUP BY window_start, window_end".to_owned(),
        "SELECT COUNT(*) FROM TUMBLE(TABLE bid, DESCRIPTOR(`dateTime`), INTERVAL '1' MONTH) GROUP BY window_start, window_end".to_owned(),
        "SELECT COUNT(*) FROM HOP(TABLE bid, DESCRIPTOR(`dateTime`), INTERVAL '10' MINUTE, INTERVAL '1' MINUTE) GROUP BY window_start, window_end".to_owned(),
        "SELECT 1".to_owned(),
        "VALUES (1)".to_owned(),
        "SELECT /*+ OPTIONS('scan.startup.mode' = 'latest-offset') */ auction FROM bid".to_owned(),
    ];
    let text: Vec<String> = all.iter().map(|query| format!("> {query}\n{}", insert(query))).collect();
    insta::assert_snapshot!(text.join("\n"));
}

/// They would make a bad record of each row.
#[test]
fn literals_that_a_function_does_not_take() {
    let text = "CAST(price AS STRING)";
    for (call, message) in [
        ("DATE_FORMAT(`dateTime`, 'YYYY-MM')".to_owned(), "the letter 'Y'"),
        (format!("TO_TIMESTAMP({text}, 'YYYY-MM')"), "the letter 'Y'"),
        (format!("TO_TIMESTAMP_LTZ({text}, 'YYYY-MM')"), "the letter 'Y'"),
        (format!("TO_DATE({text}, 'YYYY-MM')"), "the letter 'Y'"),
        (format!("UNIX_TIMESTAMP({text}, 'YYYY-MM')"), "the letter 'Y'"),
        ("FROM_UNIXTIME(price, 'YYYY-MM')".to_owned(), "the letter 'Y'"),
        ("TO_TIMESTAMP_LTZ(price, 6)".to_owned(), "the precision 0 (seconds) or 3 (milliseconds), not 6"),
        ("FLOOR(`dateTime` TO DECADE)".to_owned(), "there is no unit of time DECADE"),
        ("CEIL(`dateTime` TO DECADE)".to_owned(), "there is no unit of time DECADE"),
        ("TIMESTAMPADD(FORTNIGHT, 1, `dateTime`)".to_owned(), "there is no unit of time FORTNIGHT"),
        ("TIMESTAMPDIFF(FORTNIGHT, `dateTime`, `dateTime`)".to_owned(), "there is no unit of time FORTNIGHT"),
        (format!("JSON_VALUE({text}, 'a.b')"), "the JSON path 'a.b' is not supported"),
        (format!("REGEXP_EXTRACT({text}, '(?<=a)b')"), "the regular expression '(?<=a)b' is not supported"),
        (format!("REGEXP_REPLACE({text}, 'a(?=b)', '')"), "the regular expression 'a(?=b)' is not supported"),
        (format!(r"REGEXP({text}, '(a)\1')"), r"the regular expression '(a)\1' is not supported"),
        (format!("CONVERT_TZ({text}, 'UTC', 'Mars/Olympus')"), "there is no time zone 'Mars/Olympus'"),
        (format!("STR_TO_MAP({text}, '(')"), "the separator '(' is no regular expression"),
    ] {
        let told = insert(&format!("SELECT auction FROM bid WHERE {call} IS NULL"));
        assert!(told.contains(message) && told.contains("at line 3") && told.contains("hint: "), "{call}: {told}");
    }
    let computed = "CREATE TABLE t (s STRING, ts AS TO_TIMESTAMP(s, 'YYYY')) WITH ('connector' = 'kafka', 'topic' = 't')";
    let told = refused(computed);
    assert!(told.contains("the letter 'Y'") && told.contains("at line 1: "), "{told}");
}

/// The planner below would take the pattern for a regular expression.
#[test]
fn similar_to_is_refused_in_queries_and_tables() {
    let told = insert("SELECT auction FROM bid WHERE CAST(price AS STRING) SIMILAR TO '1%'");
    assert!(told.contains("SIMILAR TO is not supported yet\n  at line 3: price\n  hint: write REGEXP(x, '^(…)$')"), "{told}");
    let told = refused("CREATE TABLE t (s STRING, x AS s SIMILAR TO 'a') WITH ('connector' = 'kafka', 'topic' = 't')");
    assert!(told.contains("SIMILAR TO is not supported yet"), "{told}");
}

#[test]
fn casts_that_would_change_nothing() {
    for (cast, hint) in [
        ("CAST(price AS VARCHAR(3))", "SUBSTRING(CAST(… AS STRING) FROM 1 FOR 3)"),
        ("CAST(price AS CHAR(2))", "SUBSTRING(CAST(… AS STRING) FROM 1 FOR 2)"),
        ("CAST(`dateTime` AS TIMESTAMP(0))", "FLOOR(… TO SECOND)"),
        ("CAST(`dateTime` AS TIMESTAMP_LTZ(1))", "FLOOR(… TO SECOND)"),
    ] {
        let told = insert(&format!("SELECT auction FROM bid WHERE {cast} IS NULL"));
        assert!(told.contains("a CAST to ") && told.contains(hint), "{cast}: {told}");
    }
}

#[test]
fn a_time_is_no_number() {
    for (cast, hint) in [
        ("CAST(`dateTime` AS BIGINT)", "UNIX_TIMESTAMP(…)"),
        ("TRY_CAST(`dateTime` AS DECIMAL(20, 3))", "UNIX_TIMESTAMP(…)"),
        ("CAST(price AS TIMESTAMP(3))", "TO_TIMESTAMP_LTZ(…, 3)"),
        ("CAST(CAST(price AS DOUBLE) AS TIMESTAMP_LTZ(3))", "TO_TIMESTAMP_LTZ(…, 3)"),
    ] {
        let told = insert(&format!("SELECT auction FROM bid WHERE {cast} IS NULL"));
        assert!(told.contains("there is no CAST from ") && told.contains("at line 3") && told.contains(hint), "{cast}: {told}");
    }
}

/// The window that a query groups by is not looked for in what a call names.
#[test]
fn bounds_of_another_window_than_the_groups() {
    let from = "FROM bid GROUP BY TUMBLE(`dateTime`, INTERVAL '1' MINUTE)";
    for bound in [
        "TUMBLE_START(`dateTime`, INTERVAL '1' HOUR)",
        "HOP_END(`dateTime`, INTERVAL '1' MINUTE)",
        "TUMBLE_ROWTIME(price, INTERVAL '1' MINUTE)",
        "CUMULATE_START()",
    ] {
        let told = insert(&format!("SELECT UNIX_TIMESTAMP({bound}) {from}"));
        assert!(told.contains("is not of the window that the query groups by\n  at line 3: "), "{bound}: {told}");
    }
    let start = "tumble_start(bid.`dateTime`, INTERVAL '1' minute)";
    super::planned(&format!("{TABLES}INSERT INTO result SELECT COUNT(*) + UNIX_TIMESTAMP({start}) {from};"));
}

/// Hidden columns are found by their names.
#[test]
fn columns_are_not_given_names_with_two_underscores() {
    let window = "TUMBLE(TABLE bid, DESCRIPTOR(`dateTime`), INTERVAL '1' MINUTE)";
    let group = "GROUP BY window_start, window_end";
    let all = [
        "SELECT price AS __rows FROM bid".to_owned(),
        format!("SELECT SUM(u.__rows) FROM (SELECT price AS __rows, window_start, window_end FROM {window}) AS u {group}"),
        "SELECT a FROM (SELECT auction, price FROM bid) AS u (a, __late)".to_owned(),
        "WITH u (a, __late) AS (SELECT auction, price FROM bid) SELECT a FROM u".to_owned(),
        "SELECT auction FROM bid CROSS JOIN UNNEST(items) AS t(__rows)".to_owned(),
    ];
    for query in &all {
        let told = insert(query);
        assert!(told.contains("names that start with two underscores are streamshield's own\n  at line 3: __"), "{query}: {told}");
    }
    let views = [
        "CREATE VIEW v (a, __rows) AS SELECT auction, price FROM bid; INSERT INTO result SELECT auction FROM bid;",
        "CREATE TABLE l (items ARRAY<ROW<__rows BIGINT>>) WITH ('connector' = 'kafka', 'topic' = 'l');
         INSERT INTO result SELECT 1 FROM l CROSS JOIN UNNEST(items) AS t;",
    ];
    for text in views {
        let told = refused(&format!("{TABLES}{text}"));
        assert!(told.contains("`__rows`: names that start with two underscores are streamshield's own"), "{text}: {told}");
    }
}

#[test]
fn misspelt_names_get_the_nearest_one() {
    let all = [
        "SELECT auctoin FROM bid",
        "SELECT Auction FROM bid",
        "SELECT auction FROM bids",
        "SELECT LOVER('a') FROM bid",
        "SELECT b.price FROM bid AS a",
    ];
    let text: Vec<String> = all.iter().map(|query| format!("> {query}\n{}", insert(query))).collect();
    insta::assert_snapshot!(text.join("\n"));
}

#[test]
fn results_that_do_not_fit_their_table() {
    let all = ["SELECT CAST(auction AS STRING) FROM bid", "SELECT auction, price FROM bid", "SELECT CAST(price AS DOUBLE) FROM bid"];
    let text: Vec<String> = all.iter().map(|query| format!("> {query}\n{}", insert(query))).collect();
    insta::assert_snapshot!(text.join("\n"));
}

#[test]
fn definitions_with_errors() {
    let all = [
        "CREATE TABLE t (a BIGINT) WITH ('topic' = 'x')",
        "CREATE TABLE t (a BIGINT) WITH ('connector' = 'kafak', 'topic' = 'x')",
        "CREATE TABLE t (a BIGINT) WITH ('connector' = 'upsert-kafka', 'topic' = 'x')",
        "CREATE TABLE t (a LONG) WITH ('connector' = 'kafka')",
        "CREATE TABLE t (a DECIMAL(50, 2)) WITH ('connector' = 'kafka')",
        "CREATE TABLE t (a BIGINT, a INT) WITH ('connector' = 'kafka')",
        "CREATE TABLE t (__a BIGINT) WITH ('connector' = 'kafka')",
        "CREATE TABLE t (a BIGINT, WATERMARK FOR a AS a) WITH ('connector' = 'kafka')",
        "CREATE TABLE t (a TIMESTAMP(3), WATERMARK FOR b AS b) WITH ('connector' = 'kafka')",
        "CREATE TABLE t (a BIGINT, b AS c + 1) WITH ('connector' = 'kafka')",
        "CREATE TABLE t (a BIGINT PRIMARY KEY) WITH ('connector' = 'kafka')",
        "CREATE TABLE t (a BIGINT, PRIMARY KEY (b) NOT ENFORCED) WITH ('connector' = 'kafka')",
        "CREATE TABLE t (a BIGINT) PARTITIONED BY (a) WITH ('connector' = 'kafka')",
        "CREATE TABLE t LIKE u",
        "CREATE TABLE t WITH ('connector' = 'kafka') AS SELECT 1",
        "CREATE TABLE t (a BIGINT) WITH ('connector' = 'kafka', 'connector' = 'print')",
        "CREATE FUNCTION f AS 'x.y.Z'",
        "CREATE CATALOG c WITH ('type' = 'hive')",
        "DROP TABLE t",
        "ALTER TABLE t ADD (b INT)",
        "SELECT 1",
        "SHOW TABLES",
        "CREATE SOURCE s WITH (connector = 'kafka')",
        "CREATE TABEL t (a INT)",
        "INSERT INTO nowhere SELECT 1",
        "INSERT OVERWRITE t SELECT 1",
        "SET x = 1",
    ];
    let text: Vec<String> = all.iter().map(|statement| format!("> {statement}\n{}", refused(statement))).collect();
    insta::assert_snapshot!(text.join("\n"));
}

#[test]
fn a_primary_key_is_of_physical_columns() {
    for (column, kind) in [("p INT METADATA FROM 'partition' VIRTUAL", "metadata"), ("p AS a + 1", "computed")] {
        let told = refused(&format!(
            "CREATE TABLE t (a BIGINT, {column}, PRIMARY KEY (a, p) NOT ENFORCED) WITH ('connector' = 'kafka', 'topic' = 'x')"
        ));
        assert!(told.contains(&format!("the {kind} column `p` cannot be part of the primary key\n  at line 1: p")), "{told}");
    }
}

#[test]
fn options_are_refused_at_their_place_and_all_errors_are_told() {
    let sql = "CREATE TABLE a (x BIGINT) WITH (
  'connector' = 'kafka',
  'topci' = 'a'
);
CREATE TABLE b (x STRING METADATA FROM 'nothing') WITH ('connector' = 'kafka', 'topic' = 'b');
CREATE TABLE c (x BIGINT) WITH ('connector' = 'kafka', 'topic' = 'c');
INSERT INTO c SELECT x FROM a;
INSERT INTO c SELECT y FROM b;
INSERT INTO c SELECT CAST(x AS BIGINT) FROM b;";
    insta::assert_snapshot!(refused(sql));
}
