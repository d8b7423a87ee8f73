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

#[test]
fn q5_counts_hot_items_in_hopping_windows() {
    let text = query(
        "auction BIGINT, num BIGINT",
        "SELECT auction, COUNT(*) AS num
         FROM TABLE(HOP(TABLE bid, DESCRIPTOR(`dateTime`), INTERVAL '2' SECOND, INTERVAL '10' SECOND))
         GROUP BY auction, window_start, window_end",
    );
    insta::assert_snapshot!(text);
}

#[test]
fn q5_takes_the_maximum_of_the_counts_as_a_window_over_a_window() {
    let text = query(
        "num BIGINT, starttime TIMESTAMP(3), endtime TIMESTAMP(3)",
        "SELECT MAX(num) AS maxn, window_start, window_end FROM (
           SELECT auction, COUNT(*) AS num, window_start, window_end
           FROM TABLE(HOP(TABLE bid, DESCRIPTOR(`dateTime`), INTERVAL '2' SECOND, INTERVAL '10' SECOND))
           GROUP BY auction, window_start, window_end)
         GROUP BY window_start, window_end",
    );
    insta::assert_snapshot!(text);
}

#[test]
fn q7_takes_the_highest_bid_of_all_in_one_partition() {
    let text = query(
        "maxprice BIGINT, endtime TIMESTAMP(3)",
        "SELECT MAX(price) AS maxprice, window_end
         FROM TUMBLE(bid, DESCRIPTOR(`dateTime`), INTERVAL '10' SECOND)
         GROUP BY window_start, window_end",
    );
    insta::assert_snapshot!(text);
}

#[test]
fn q14_calculates() {
    let text = query(
        "auction BIGINT, bidder BIGINT, price DECIMAL(23, 3), bidTimeType STRING, `dateTime` TIMESTAMP(3), extra STRING, c_counts BIGINT",
        "SELECT auction, bidder, 0.908 * price AS price,
           CASE WHEN HOUR(`dateTime`) >= 8 AND HOUR(`dateTime`) <= 18 THEN 'dayTime'
                WHEN HOUR(`dateTime`) <= 6 OR HOUR(`dateTime`) >= 20 THEN 'nightTime'
                ELSE 'otherTime' END AS bidTimeType,
           `dateTime`, extra, CAST(CHAR_LENGTH(extra) AS BIGINT) AS c_counts
         FROM bid WHERE 0.908 * price > 1000000 AND 0.908 * price < 50000000",
    );
    insta::assert_snapshot!(text);
}

#[test]
fn q15_counts_distinct_beside_plain_counts() {
    let text = query(
        "`day` STRING, total_bids BIGINT, rank1_bids BIGINT, total_bidders BIGINT, rank1_bidders BIGINT, total_auctions BIGINT",
        "SELECT DATE_FORMAT(window_start, 'yyyy-MM-dd') AS `day`, count(*) AS total_bids,
           count(*) filter (where price < 10000) AS rank1_bids,
           count(distinct bidder) AS total_bidders,
           count(distinct bidder) filter (where price < 10000) AS rank1_bidders,
           count(distinct auction) AS total_auctions
         FROM TABLE(TUMBLE(TABLE bid, DESCRIPTOR(`dateTime`), INTERVAL '1' DAY))
         GROUP BY window_start, window_end",
    );
    insta::assert_snapshot!(text);
}

#[test]
fn q21_extracts_by_regular_expression() {
    let text = query(
        "auction BIGINT, bidder BIGINT, price BIGINT, channel STRING, channel_id STRING",
        r"SELECT auction, bidder, price, channel,
            CASE WHEN lower(channel) = 'apple' THEN '0' WHEN lower(channel) = 'google' THEN '1'
              ELSE REGEXP_EXTRACT(url, '(&|^)channel_id=([^&]*)', 2) END AS channel_id
          FROM bid
          WHERE REGEXP_EXTRACT(url, '(&|^)channel_id=([^&]*)', 2) IS NOT NULL OR lower(channel) IN ('apple', 'google')",
    );
    insta::assert_snapshot!(text);
}

#[test]
fn q22_splits() {
    let text = query(
        "auction BIGINT, bidder BIGINT, price BIGINT, channel STRING, dir1 STRING, dir2 STRING, dir3 STRING",
        "SELECT auction, bidder, price, channel, SPLIT_INDEX(url, '/', 3) AS dir1, SPLIT_INDEX(url, '/', 4) AS dir2, SPLIT_INDEX(url, '/', 5) AS dir3 FROM bid",
    );
    insta::assert_snapshot!(text);
}
