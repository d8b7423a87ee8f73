import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.time.LocalDateTime;
import java.time.ZoneOffset;
import java.time.format.DateTimeFormatter;
import java.util.Properties;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.KeyValue;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Grouped;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.kstream.TimeWindows;
import org.apache.kafka.streams.kstream.WindowedSerdes;
import org.apache.kafka.streams.state.WindowStore;

/**
 * One instance of the job of `make bench-failover` on Kafka Streams: COUNT(*) and SUM per key and window of 100 ms, EOS v2, one standby.
 *
 * <p>Its best settings for a short gap, all of them on purpose:
 *
 * <ul>
 *   <li>The session time-out is the caller's, the heartbeat a third of it: that is its detection time.
 *   <li>A dead instance's transaction holds its readers back until it times out, so transaction.timeout.ms is the caller's, too: 3 s instead of the default 10 s
 *       (with 1 s a busy machine ends the transactions of the living). The broker of the benchmark looks for such transactions every 100 ms (its default is 10 s).
 *   <li>No suppress(): a result comes with each commit, not after the window and its grace. The last one of a window counts.
 *   <li>Grace of a minute: after a take-over partitions lag behind each other, and what is later than the grace would be dropped.
 * </ul>
 *
 * <p>Arguments: bootstrap servers, application id, state folder, input, output, partitions, session time-out and transaction time-out in ms, name of this instance. Each result is
 * written as "count,sum,instance" under its windowed key, so partition p of the output is the work of task 1_p. Every 200 ms it prints
 * "STATE lag standbys", which tells when its standbys have caught up.
 */
public class Peer {
  private static final DateTimeFormatter TIME = DateTimeFormatter.ofPattern("yyyy-MM-dd HH:mm:ss.SSS");

  /** Count and sum. */
  record Total(long count, long sum) {}

  /** A record of the input. Parsed by hand: the text is flat, and JSON libraries are not what is compared. */
  record Event(String key, long value, long timeMs) {
    static Event parse(String text) {
      long time = LocalDateTime.parse(field(text, "\"ts\":\"", '"'), TIME).toInstant(ZoneOffset.UTC).toEpochMilli();
      return new Event(field(text, "\"k\":\"", '"'), Long.parseLong(field(text, "\"v\":", ',')), time);
    }

    private static String field(String text, String before, char after) {
      int start = text.indexOf(before) + before.length();
      return text.substring(start, text.indexOf(after, start));
    }
  }

  private static Serde<Total> totals() {
    return Serdes.serdeFrom(
        (topic, total) -> total == null ? null : (total.count + "," + total.sum).getBytes(StandardCharsets.UTF_8),
        (topic, bytes) -> {
          if (bytes == null) return null;
          String[] parts = new String(bytes, StandardCharsets.UTF_8).split(",");
          return new Total(Long.parseLong(parts[0]), Long.parseLong(parts[1]));
        });
  }

  public static void main(String[] arguments) throws Exception {
    String input = arguments[3], output = arguments[4], instance = arguments[8];
    int partitions = Integer.parseInt(arguments[5]);
    Duration window = Duration.ofMillis(100);
    StreamsBuilder builder = new StreamsBuilder();
    builder.stream(input, Consumed.with(Serdes.ByteArray(), Serdes.String()).withTimestampExtractor(Peer::timeOf))
        .map((none, text) -> {
          Event event = Event.parse(text);
          return KeyValue.pair(event.key, event.value);
        })
        .filter((key, value) -> !key.equals("end"))
        .repartition(org.apache.kafka.streams.kstream.Repartitioned.with(Serdes.String(), Serdes.Long()).withNumberOfPartitions(partitions).withName("by-key"))
        .groupByKey(Grouped.with(Serdes.String(), Serdes.Long()))
        .windowedBy(TimeWindows.ofSizeAndGrace(window, Duration.ofMinutes(1)))
        .aggregate(
            () -> new Total(0, 0),
            (key, value, total) -> new Total(total.count + 1, total.sum + value),
            Materialized.<String, Total, WindowStore<Bytes, byte[]>>as("totals").withKeySerde(Serdes.String()).withValueSerde(totals()))
        .toStream()
        .mapValues(total -> total.count + "," + total.sum + "," + instance)
        .to(output, Produced.with(WindowedSerdes.timeWindowedSerdeFrom(String.class, window.toMillis()), Serdes.String()));
    KafkaStreams streams = new KafkaStreams(builder.build(), settings(arguments));
    Runtime.getRuntime().addShutdownHook(new Thread(() -> streams.close(Duration.ofSeconds(10))));
    streams.start();
    while (true) {
      long lag = 0, standbys = 0;
      for (var store : streams.allLocalStorePartitionLags().values()) {
        for (var partition : store.values()) lag = Math.max(lag, partition.offsetLag());
      }
      for (var thread : streams.metadataForLocalThreads()) standbys += thread.standbyTasks().size();
      System.out.printf("%s %d %d%n", streams.state(), lag, standbys);
      Thread.sleep(200);
    }
  }

  private static long timeOf(ConsumerRecord<Object, Object> record, long partitionTime) {
    return Event.parse((String) record.value()).timeMs;
  }

  private static Properties settings(String[] arguments) {
    int session = Integer.parseInt(arguments[6]);
    Properties settings = new Properties();
    settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, arguments[0]);
    settings.put(StreamsConfig.APPLICATION_ID_CONFIG, arguments[1]);
    settings.put(StreamsConfig.STATE_DIR_CONFIG, arguments[2]);
    settings.put(StreamsConfig.CLIENT_ID_CONFIG, arguments[8]);
    settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
    settings.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 100);
    settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 1);
    settings.put(StreamsConfig.NUM_STANDBY_REPLICAS_CONFIG, 1);
    settings.put(StreamsConfig.ACCEPTABLE_RECOVERY_LAG_CONFIG, 10_000L);
    settings.put(StreamsConfig.MAX_WARMUP_REPLICAS_CONFIG, 6);
    settings.put(StreamsConfig.PROBING_REBALANCE_INTERVAL_MS_CONFIG, 60_000L); // the smallest that it takes
    settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.SESSION_TIMEOUT_MS_CONFIG), session);
    settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.HEARTBEAT_INTERVAL_MS_CONFIG), Math.max(session / 3, 30));
    settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG), "earliest");
    settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.FETCH_MAX_WAIT_MS_CONFIG), 50);
    settings.put(StreamsConfig.producerPrefix(ProducerConfig.TRANSACTION_TIMEOUT_CONFIG), Integer.parseInt(arguments[7]));
    settings.put(StreamsConfig.producerPrefix(ProducerConfig.LINGER_MS_CONFIG), 5);
    return settings;
  }
}
