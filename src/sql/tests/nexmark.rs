//! The Nexmark queries, as Flink's benchmark writes them.

use super::explained;

const BID: &str = "
CREATE TABLE bid (
  auction BIGINT, bidder BIGINT, price BIGINT, channel STRING, url STRING, extra STRING,
  `dateTime` TIMESTAMP(3),
  WATERMARK FOR `dateTime` AS `dateTime` - INTERVAL '4' SECOND
) WITH ('connector' = 'kafka', 'topic' = 'bid', 'format' = 'json');
";

fn query(sink_columns: &str, select: &str) -> String {
    let sink = format!("CREATE TABLE result ({sink_columns}) WITH ('connector' = 'kafka', 'topic' = 'result', 'format' = 'json');\n");
    explained(&format!("{BID}{sink}INSERT INTO result\n{select};"))
}

#[test]
fn q0_passes_rows_through() {
    let text = query(
        "auction BIGINT, bidder BIGINT, price BIGINT, `dateTime` TIMESTAMP(3), extra STRING",
        "SELECT auction, bidder, price, `dateTime`, extra FROM bid",
    );
    insta::assert_snapshot!(text);
}

#[test]
fn q1_converts_currencies() {
    let text = query(
        "auction BIGINT, bidder BIGINT, price DECIMAL(23, 3), `dateTime` TIMESTAMP(3), extra STRING",
        "SELECT auction, bidder, 0.908 * price AS price, `dateTime`, extra FROM bid",
    );
    insta::assert_snapshot!(text);
}

#[test]
fn q2_filters() {
    let text = query("auction BIGINT, price BIGINT", "SELECT auction, price FROM bid WHERE MOD(auction, 123) = 0");
    insta::assert_snapshot!(text);
}

#[test]
fn q12_counts_per_bidder_and_window_in_event_time() {
    let text = query(
        "bidder BIGINT, bid_count BIGINT, starttime TIMESTAMP(3), endtime TIMESTAMP(3)",
        "SELECT bidder, COUNT(*) AS bid_count, window_start AS starttime, window_end AS endtime
         FROM TABLE(TUMBLE(TABLE bid, DESCRIPTOR(`dateTime`), INTERVAL '10' SECOND))
         GROUP BY bidder, window_start, window_end",
    );
    insta::assert_snapshot!(text);
}
